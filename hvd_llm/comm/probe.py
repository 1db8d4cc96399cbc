"""What Horovod says of itself and how fast two ranks add: run in processes of its own by horovod_build/selftest.py.

    python -m hvd_llm.comm.probe --out FILE                 how Horovod was built
    horovodrun -np 2 python -m hvd_llm.comm.probe --allreduce --out FILE

The answer is a JSON file because launchers prefix, interleave and buffer what ranks print.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from hvd_llm.comm.base import Comm
from hvd_llm.comm.connect import connect
from hvd_llm.config import Config, Reduce

SMALL_BYTES = 1 << 10
LARGE_BYTES = 16 << 20


def built() -> dict:
    """Version, controllers and operations of the installed Horovod, and the torch it was compiled against."""
    import horovod
    import horovod.torch as hvd
    from horovod.torch import mpi_lib_v2

    metadata = json.loads((Path(horovod.__file__).parent / "metadata.json").read_text(encoding="utf-8"))
    kinds = {"mpi": hvd.mpi_built(), "gloo": hvd.gloo_built(), "nccl": hvd.nccl_built()}
    return {
        "version": horovod.__version__,
        "torch": metadata.get("pytorch", ""),
        "controllers": [name for name in ("mpi", "gloo") if kinds[name]],
        "operations": [name for name, there in kinds.items() if there],
        "cuda": bool(hvd.cuda_built()),
        "library": mpi_lib_v2.__file__,
    }


def allreduce() -> dict | None:
    """Add one tensor over all ranks, check the sum, and time it; rank 0 returns the answer. Collective."""
    comm = connect(Config(reduce=Reduce(cycle_ms=1)))
    try:
        device = _device(comm)
        total = comm.sum("probe.check", torch.full((1000,), comm.rank + 1.0, device=device))
        expected = comm.size * (comm.size + 1) / 2
        assert (total == expected).all(), f"sum over {comm.size} ranks is {total[0]}, not {expected}"
        small_s = _seconds(comm, "probe.small", torch.zeros(SMALL_BYTES // 4, device=device), rounds=50)
        large_s = _seconds(comm, "probe.large", torch.zeros(LARGE_BYTES // 4, device=device), rounds=8)
        shared_s = None
        if comm.shares_memory:
            shared = comm.allocate(LARGE_BYTES // 4, torch.float32, torch.device("cpu"))
            shared_s = _seconds(comm, "probe.shared", shared, rounds=8)
        if comm.rank:
            return None
        return {
            "size": comm.size,
            "controller": comm.controller,
            "device": device,
            "latency_us": small_s * 1e6,
            "bandwidth_gb_s": LARGE_BYTES / large_s / 1e9,
            "shared_gb_s": shared_s and LARGE_BYTES / shared_s / 1e9,
        }
    finally:
        comm.close()


def _device(comm: Comm) -> str:
    """A GPU of its own for each rank if there are enough (NCCL refuses to share one), else the CPU."""
    if torch.cuda.device_count() < comm.local_size:
        return "cpu"
    torch.cuda.set_device(comm.local_rank)
    return f"cuda:{comm.local_rank}"


def _seconds(comm: Comm, name: str, tensor: torch.Tensor, rounds: int) -> float:
    """Median time of one allreduce, in seconds, after two that do not count."""
    times = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        comm.sum(name, tensor)
        if tensor.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--allreduce", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    answer = allreduce() if args.allreduce else built()
    if answer is not None:
        args.out.write_text(json.dumps(answer), encoding="utf-8")
