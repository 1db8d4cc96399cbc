"""What the launcher told this process, read from the environment before Horovod is imported."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

# launcher: variables for rank, size, rank on this host, ranks on this host
_VARIABLES = {
    "horovodrun (Gloo)": ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MPICH or Intel MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}


@dataclass(frozen=True)
class Launch:
    """Who started this process (`by` is None without a launcher) and as which of how many."""

    by: str | None = None
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @staticmethod
    def from_environment(environ: Mapping[str, str] = os.environ) -> "Launch":
        for launcher, names in _VARIABLES.items():
            if names[0] in environ and names[1] in environ:
                values = [int(environ.get(name, default)) for name, default in zip(names, "0101", strict=True)]
                return Launch(launcher, *values)
        return Launch()
