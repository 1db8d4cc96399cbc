"""Join the world that the launcher made, or be a world of one."""

import importlib.util
import os

import torch

from hvd_llm.comm.base import Comm
from hvd_llm.comm.solo import Solo
from hvd_llm.errors import UserError
from hvd_llm.launcher import Launch


def connect(cycle_ms: float = 0, timeline: bool = False, share_memory: bool = True, groups: bool = False) -> Comm:
    """Return this process's `Comm`. Collective when a launcher started it.

    Args:
        cycle_ms: how often Horovod looks for new operations, in milliseconds; 0 chooses for this machine.
        timeline: `Comm.start_timeline` will be called.
        share_memory: ranks of one host sum what `Comm.allocate` gave them in memory, without Horovod.
        groups: `Comm.register` will be called with groups other than the world.

    Raises:
        UserError: a launcher started several ranks but Horovod is not installed, or sees another world.
    """
    launch = Launch.from_environment()
    if launch.by is None:
        tasks = os.environ.get("SLURM_NTASKS", "1")
        if "SLURM_STEP_ID" in os.environ and tasks != "1":
            raise UserError(f"srun started {tasks} tasks, which Horovod cannot join; use mpirun in the allocation")
        return Solo()
    if importlib.util.find_spec("horovod") is None:
        raise UserError(
            f"{launch.by} started {launch.size} ranks but Horovod is not installed; run: hvd-llm install-horovod",
            shared=True,
        )
    for name, value in settings(cycle_ms, timeline).items():
        os.environ.setdefault(name, value)  # what the user exported wins
    from hvd_llm.comm.hvd import HvdComm

    return HvdComm(launch, share_memory, groups)


def settings(cycle_ms: float, timeline: bool = False) -> dict[str, str]:
    """Environment for Horovod and MPI that suits flat buckets on hosts whose cores all compute."""
    return {
        "HOROVOD_CYCLE_TIME": f"{cycle_ms or (1 if torch.cuda.is_available() else 10):g}",
        # Buckets are flat already: packing several into the fusion buffer would only copy them.
        "HOROVOD_FUSION_THRESHOLD": "0",
        # A waiting MPI rank gives its core away: with a rank on every core it would slow its neighbour.
        "OMPI_MCA_mpi_yield_when_idle": "1",
        # Lets the timeline be started later, when the run folder is known.
        **({"HOROVOD_TIMELINE": "DYNAMIC"} if timeline else {}),
    }
