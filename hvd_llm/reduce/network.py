"""How fast ranks exchange: a line, latency and seconds per byte, for every kind of operation.

Measured with real operations while nothing else goes on (Hockney's model, Parallel Computing 20, 1994). Bytes are those
that a rank sends, as the pricing driver counts them, so that the number of ranks is in them already.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hvd_llm.comm import WORLD, Comm, Group
from hvd_llm.compress.base import AllToAll, Gather, Request, Sum
from hvd_llm.device import moment
from hvd_llm.reduce.pricing import Operation, sent_bytes

_SMALL, _SHARED, _LARGEST = 2**8, 2**20, 2**22  # float32 elements: 1 KiB says latency, 16 MiB are enough on any network
_LONG_S = 0.25  # an operation that takes so long says how fast the network is
_TURNS, _TURNS_S = 5, 10.0  # of work alone and under load: so many, if that takes no longer
_REPEATS = 7  # of the small one: a median that a late look of Horovod does not spoil

Make = Callable[[int], Request]


@dataclass(frozen=True)
class Line:
    """Seconds of an operation: `latency_s`, and `per_byte_s` for each byte that a rank sends."""

    latency_s: float
    per_byte_s: float

    def __str__(self):
        bandwidth = f"{1e-6 / self.per_byte_s:,.1f} MB/s" if self.per_byte_s else "too short to tell MB/s"
        return f"{1e3 * self.latency_s:.3g} ms and {bandwidth}"


@dataclass(frozen=True)
class Network:
    """A line for each group of ranks, by name, and kind of operation (see `pricing.Operation`)."""

    lines: Mapping[tuple[str, str], Line]

    def seconds(self, operations: Sequence[Operation]) -> tuple[float, float]:
        """Latency of all of them together, and the seconds that their bytes take."""
        pairs = [(self.lines[operation.group, operation.kind], operation.sent_bytes) for operation in operations]
        return sum(line.latency_s for line, _ in pairs), sum(line.per_byte_s * sent for line, sent in pairs)


def measure(comm: Comm, device: torch.device, groups: Mapping[str, Group]) -> Network:
    """Time every kind of operation, on tensors of `device`; the same answer on each rank. Collective.

    Args:
        groups: by name, in which of them: the world, or this rank's, while others of that name do the same.
    """
    lines = {}
    for name, group in groups.items():
        found = {
            kind: _line(comm, group, kind, make, _SHARED if kind == "bucket" else _LARGEST)  # it is never given back
            for kind, make in makes(comm, device, group).items()
        }
        lines |= {(name, kind): line for kind, line in ({"bucket": found["sum"]} | found).items()}
    return Network(lines)


def makes(comm: Comm, device: torch.device, group: Group = WORLD) -> dict[str, Make]:
    """By kind of operation, what makes a request about so many float32 elements.

    So many are summed, gathered from all ranks together, or given by each rank to all. "bucket", the sum in shared
    memory, is among them where ranks share it; to make one is collective.
    """
    _, size = comm.place(group)

    def part(elements: int) -> torch.Tensor:
        return torch.zeros(-(-elements // size), device=device)

    found: dict[str, Make] = {
        "sum": lambda elements: Sum(torch.zeros(elements, device=device)),
        "gather": lambda elements: Gather(part(elements)),
        "all_to_all": lambda elements: AllToAll([part(elements)] * size),
    }
    if comm.shares_memory and device.type == "cpu" and size == comm.size:
        found["bucket"] = lambda elements: Sum(comm.allocate(elements, torch.float32, device))
    return found


def duration(comm: Comm, kind: str, request: Request, group: Group = WORLD) -> float:
    """Seconds of one operation, on the rank that it takes longest; the same answer on each. Collective."""
    # Horovod negotiates again when a name's shape changes
    name = f"network.{group.name}.{kind}.{request.payload_bytes}"
    device = (request.tensors[0] if isinstance(request, AllToAll) else request.tensor).device
    began = moment(device)
    match request:
        case Sum(tensor):
            comm.sum(name, tensor, group)
        case Gather(tensor):
            comm.gather_async(name, tensor, group).wait()
        case AllToAll(tensors):
            comm.all_to_all_async(name, tensors, group).wait()
    mine = torch.tensor([moment(device) - began], dtype=torch.float64)
    return max(map(float, comm.gather_async("network.seconds", mine).wait()))


def burden(comm: Comm, device: torch.device, line: Line, work: Callable[[], float]) -> float:
    """By how many seconds each byte that this rank sends holds up its other work: to send takes processor and memory.

    Alone and while something is sent, by turns, lest a slow moment of the machine be one's alone; the shortest of each
    counts, because chance only adds. Still it may come out a little below 0. Collective.

    Args:
        line: that of a sum among all ranks.
        work: does some, and returns how long it took.
    """
    first_s = work()
    fitting = max(_SMALL, int(first_s / max(line.per_byte_s, 1e-12) / 8))  # a sum takes about as long as the work
    turns = min(_TURNS, max(1, int(_TURNS_S / (2 * first_s))))
    elements, turns = comm.broadcast_object("network.load", [min(_LARGEST, fitting), turns])
    tensor = torch.zeros(elements, device=device)

    def loaded() -> tuple[float, float]:
        """Seconds of the work, and until the sum was there, too."""
        began, handle = moment(device), comm.sum_async("network.load", tensor)
        took = work()
        handle.wait()
        return took, moment(device) - began

    pairs = [(work(), loaded()) for _ in range(turns)]
    alone_s = min(alone for alone, _ in pairs)
    took, whole = min(under for _, under in pairs)
    sent = sent_bytes(Sum(tensor), comm.rank, comm.size) * took / whole
    return (took - alone_s) / sent


def fit(sent: Sequence[float], seconds: Sequence[float]) -> Line:
    """The line through two measurements, or nearest to several: by relative error, lest the longest decide alone.

    Chance may have large messages arrive sooner than small ones: then bytes take no time.

    Args:
        sent: bytes that a rank sends; at least two different numbers.
    """
    per_byte_s, latency_s = np.polyfit(sent, seconds, 1, w=1 / np.asarray(seconds))
    return Line(max(0.0, float(latency_s)), max(0.0, float(per_byte_s)))


def _line(comm: Comm, group: Group, kind: str, make: Make, largest: int) -> Line:
    """From a small operation, and from the first that takes long, if any does."""
    small = make(_SMALL)
    latency_s = statistics.median(duration(comm, kind, small, group) for _ in range(_REPEATS))
    elements, seconds = _SMALL, 0.0
    while seconds < _LONG_S and elements < largest:
        elements *= 4
        request = make(elements)
        seconds = min(duration(comm, kind, request, group) for _ in range(2 if seconds < _LONG_S / 4 else 1))
    mine = [sent_bytes(each, *comm.place(group)) for each in (small, request)]
    sent = [max(of_all) for of_all in zip(*comm.gather_objects("network.sent", mine), strict=True)]
    return fit(sent, [latency_s, seconds]) if sent[1] else Line(0, 0)  # groups of one have nobody to send to
