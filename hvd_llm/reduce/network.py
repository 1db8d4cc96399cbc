"""How fast ranks exchange: a line, latency and seconds per byte, for every kind of operation.

Measured with real operations while nothing else goes on (Hockney's model, Parallel Computing 20, 1994). Bytes are those
that a rank sends, as the pricing driver counts them, so that the number of ranks is in them already.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from hvd_llm.comm import Comm
from hvd_llm.compress.base import AllToAll, Gather, Request, Sum
from hvd_llm.reduce.pricing import Operation, sent_bytes

_SMALL, _SHARED, _LARGEST = 2**8, 2**20, 2**22  # float32 elements: 1 KiB says latency, 16 MiB are enough on any network
_LONG_S = 0.25  # an operation that takes so long says how fast the network is
_REPEATS = 7  # of the small one: a median that a late look of Horovod does not spoil

_Make = Callable[[int], Request]


@dataclass(frozen=True)
class Line:
    """Seconds of an operation: `latency_s`, and `per_byte_s` for each byte that a rank sends."""

    latency_s: float
    per_byte_s: float


@dataclass(frozen=True)
class Network:
    """A line for each kind of operation (see `pricing.Operation`)."""

    lines: Mapping[str, Line]

    def seconds(self, operations: Sequence[Operation]) -> tuple[float, float]:
        """Latency of all of them together, and the seconds that their bytes take."""
        pairs = [(self.lines[operation.kind], operation.sent_bytes) for operation in operations]
        return sum(line.latency_s for line, _ in pairs), sum(line.per_byte_s * sent for line, sent in pairs)


def measure(comm: Comm, device: torch.device) -> Network:
    """Time every kind of operation among all ranks, on tensors of `device`; the same answer on each. Collective."""
    lines = {
        "sum": _line(comm, "sum", lambda n: Sum(torch.zeros(n, device=device))),
        "gather": _line(comm, "gather", lambda n: Gather(torch.zeros(n, device=device)), _LARGEST // comm.size),
        "all_to_all": _line(
            comm, "all_to_all", lambda n: AllToAll([torch.zeros(-(-n // comm.size), device=device)] * comm.size)
        ),
    }
    lines["bucket"] = lines["sum"]
    if comm.shares_memory:
        shared = {n: Sum(comm.allocate(n, torch.float32, device)) for n in (_SMALL, _SHARED)}
        lines["bucket"] = _line(comm, "bucket", shared.__getitem__, _SHARED, growth=_SHARED // _SMALL)
    return Network(lines)


def _line(comm: Comm, kind: str, make: _Make, largest: int = _LARGEST, growth: int = 4) -> Line:
    """From a small operation, and from the first that takes long, if any does."""
    small = make(_SMALL)
    latency_s = statistics.median(_seconds(comm, kind, small) for _ in range(_REPEATS))
    elements, seconds = _SMALL, 0.0
    while seconds < _LONG_S and elements < largest:
        elements *= growth
        request = make(elements)
        seconds = min(_seconds(comm, kind, request) for _ in range(2 if seconds < _LONG_S / 4 else 1))
    more = sent_bytes(request, comm.rank, comm.size) - sent_bytes(small, comm.rank, comm.size)
    return Line(latency_s, max(0.0, seconds - latency_s) / more)


def _seconds(comm: Comm, kind: str, request: Request) -> float:
    """Of one operation, on the rank that it takes longest."""
    began = time.perf_counter()
    match request:
        case Sum(tensor):
            comm.sum(f"network.{kind}", tensor)
        case Gather(tensor):
            comm.gather_async(f"network.{kind}", tensor).wait()
        case AllToAll(tensors):
            comm.all_to_all_async(f"network.{kind}", tensors).wait()
    mine = torch.tensor([time.perf_counter() - began], dtype=torch.float64)
    return max(map(float, comm.gather_async("network.seconds", mine).wait()))
