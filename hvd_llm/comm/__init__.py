"""The only place that imports Horovod or mpi4py: everyone else is handed a `Comm`."""

from hvd_llm.comm.base import WORLD, Comm, Group, Handle
from hvd_llm.comm.connect import connect

__all__ = ["WORLD", "Comm", "Group", "Handle", "connect"]
