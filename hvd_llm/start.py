"""How a command that runs on many ranks begins: read the settings, join the world, agree on what is wrong."""

from collections.abc import Callable

from hvd_llm.comm import Comm, connect
from hvd_llm.config import Config
from hvd_llm.errors import UserError


def start(read: Callable[[], Config]) -> tuple[Config, Comm]:
    """Return the settings and this rank's `Comm`. Collective.

    A rank that cannot read its settings still joins, so that all ranks end together with the same sentence.

    Raises:
        UserError: the same on every rank.
    """
    try:
        config, trouble = read(), None
    except UserError as error:
        config, trouble = Config(), error
    comm = connect(config.reduce.cycle_ms)
    with comm.together("read the settings"):
        if trouble:
            raise trouble
    return config, comm
