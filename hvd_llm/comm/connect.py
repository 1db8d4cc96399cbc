"""Join the world that the launcher made, or be a world of one."""

import importlib.util
import os

import torch

from hvd_llm.comm.base import Comm
from hvd_llm.comm.solo import Solo
from hvd_llm.config import Config
from hvd_llm.environment import variables
from hvd_llm.errors import UserError
from hvd_llm.launcher import Launch


def connect(config: Config | None = None, groups: bool = False) -> Comm:
    """Return this process's `Comm`. Collective when a launcher started it.

    Args:
        config: says how often Horovod looks for operations, whether ranks of one host share memory, whether
            `Comm.start_timeline` will be called; defaults if None.
        groups: `Comm.register` will be called with groups other than the world.

    Raises:
        UserError: a launcher started several ranks but Horovod is not installed, or sees another world.
    """
    config = config or Config()
    launch = Launch.from_environment()
    if launch.by is None:
        tasks = os.environ.get("SLURM_NTASKS", "1")
        if "SLURM_STEP_ID" in os.environ and tasks != "1":
            raise UserError(f"srun started {tasks} tasks, which Horovod cannot join; use mpirun in the allocation")
        if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
            raise UserError("torchrun started several ranks, which Horovod cannot join; use horovodrun or mpirun")
        return Solo()
    if importlib.util.find_spec("horovod") is None:
        raise UserError(
            f"{launch.by} started {launch.size} ranks but Horovod is not installed; run: hvd-llm install-horovod",
            shared=True,
        )
    from hvd_llm.comm import hvd  # slow to import, and not always installed

    gpu = config.run.device != "cpu" and torch.cuda.is_available()
    milliseconds = config.reduce.cycle_ms or cycle_ms(gpu, hvd.wakes(), groups)
    for name, variable in variables(milliseconds, config.trace.horovod_timeline).items():
        os.environ.setdefault(name, variable.value)  # what the user exported wins
    return hvd.HvdComm(launch, config.reduce.share_memory and not gpu, groups)


def cycle_ms(gpu: bool, wakes: bool, groups: bool) -> float:
    """How often Horovod should look for new operations, in milliseconds.

    Every look is a collective of all ranks, on the cores that compute. If Horovod wakes up when there is something to
    do, those in between are for what is not announced: the end of another rank; and the operations of groups, which
    wait for a look of ranks that have nothing to do with them.
    """
    if gpu:
        return 1
    return 100 if wakes and not groups else 10
