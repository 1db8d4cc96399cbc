"""How a command that runs on many ranks begins: read the settings, join the world, agree on what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hvd_llm.config import Config
from hvd_llm.errors import UserError
from hvd_llm.imports import lasting
from hvd_llm.launcher import Launch

if TYPE_CHECKING:
    from hvd_llm.comm import Comm


def start(read: Callable[[], Config]) -> tuple[Config, Comm]:
    """Return the settings and this rank's `Comm`. Collective.

    A rank that cannot read its settings still joins, so that all ranks end together with the same sentence.

    Raises:
        UserError: the same on every rank.
    """
    try:
        config, trouble = read(), None
    except UserError as error:
        if Launch.from_environment().by is None:
            raise
        config, trouble = Config(), error
    # PyTorch and Horovod: not needed to say that a setting is wrong
    with lasting():
        from hvd_llm.comm import connect
        from hvd_llm.compress import registry

    try:
        groups = any(compressor.groups for compressor in registry.candidates(config.reduce.compressor))
    except UserError as error:
        groups, trouble = False, error
    comm = connect(config, groups)
    with comm.together("read the settings"):
        if trouble:
            raise trouble
    return config, comm
