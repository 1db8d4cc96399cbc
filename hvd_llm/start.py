"""How a command that runs on many ranks begins: read the settings, join the world, agree on what is wrong."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from hvd_llm.config import Config
from hvd_llm.errors import UserError
from hvd_llm.imports import lasting
from hvd_llm.launcher import Launch

_TURN_S = 5

if TYPE_CHECKING:
    from hvd_llm.comm import Comm


def start(read: Callable[[], Config]) -> tuple[Config, Comm]:
    """Return the settings and this rank's `Comm`. Collective.

    A rank that cannot read its settings still joins, so that all ranks end together with the same sentence. Not where
    there are several hosts: another host's may be fine and ask for groups, and ranks of which only some have groups
    cannot speak with each other. There it ends at once, and the launcher ends the others.

    Raises:
        UserError: the same on every rank, but for such a one.
    """
    launch, trouble = Launch.from_environment(), None
    try:
        config, groups = _read(read)
    except UserError as error:
        if launch.by is None:
            raise
        if launch.local_size < launch.size:
            # Rank 0 speaks first, then the first rank of every other host: launchers end a job with its first process.
            time.sleep(_TURN_S * ((launch.rank > 0) + (launch.local_rank > 0)))
            raise
        config, groups, trouble = Config(), False, error
    from hvd_llm.comm import connect

    comm = connect(config, groups)
    with comm.together("read the settings"):
        if trouble:
            raise trouble
    return config, comm


def _read(read: Callable[[], Config]) -> tuple[Config, bool]:
    """The settings, and whether its compressors ask for groups of ranks."""
    config = read()
    # PyTorch and Horovod: not needed to say that a setting is wrong
    with lasting():
        from hvd_llm.compress import registry
    return config, any(compressor.groups for compressor in registry.candidates(config.reduce.compressor))
