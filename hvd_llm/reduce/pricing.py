"""The pricing driver: what a compressor costs one rank of any number, without any other rank.

It runs the generator on real numbers, as rank 0, and answers its requests with made-up ones of the right size. Bytes
are those of the algorithms that MPI and Gloo use for large tensors; time is that of the generator alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from hvd_llm.compress.base import AllToAll, At, Compressor, Gather, Request, State, Sum
from hvd_llm.device import moment


@dataclass(frozen=True)
class Operation:
    """What one request costs a rank.

    Attributes:
        kind: "bucket" for a sum of the gradient where it lies, which ranks that share memory do there; "sum", "gather",
            "all_to_all".
        sent_bytes: payload that the rank sends, what it passes on for others included.
        group: name of the group among which it does.
        dtype: of what is summed.
    """

    kind: str
    sent_bytes: float
    group: str = "world"
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Price:
    """What one exchange costs a rank.

    Attributes:
        operations: one after the other.
        kernel_s: seconds of computing.
    """

    operations: tuple[Operation, ...]
    kernel_s: float

    @property
    def sent_bytes(self) -> float:
        """What the rank sends to other hosts."""
        return sum(operation.sent_bytes for operation in self.operations if operation.group != "node")

    @property
    def node_bytes(self) -> float:
        """What it sends within its host."""
        return sum(operation.sent_bytes for operation in self.operations if operation.group == "node")

    @property
    def wire_bytes(self) -> float:
        """Bytes on Ethernet: a frame of 1514 carries 1448 of TCP. Acknowledgements and negotiation are not in it."""
        return self.sent_bytes * 1514 / 1448


def together(prices: Sequence[Price]) -> Price:
    """The price of exchanges that go from round to round together: their sums travel as one (see `exchange`)."""
    operations: list[Operation] = []
    for round_ in zip_longest(*(price.operations for price in prices)):
        sums: dict[tuple, list[Operation]] = {}
        for operation in filter(None, round_):
            if operation.kind in ("bucket", "sum"):
                sums.setdefault((operation.group, operation.dtype), []).append(operation)
            else:
                operations.append(operation)
        for kind, same in sums.items():
            several = Operation("sum", sum(operation.sent_bytes for operation in same), *kind)
            operations.append(same[0] if len(same) == 1 else several)
    return Price(tuple(operations), sum(price.kernel_s for price in prices))


def rehearse(compressor: Compressor, size: int, node_size: int) -> None:
    """Find out whether a compressor can be used among so many ranks.

    Raises:
        UserError: it says that it cannot.
    """
    price(compressor, torch.ones((2, 64, 64) if compressor.takes == "matrices" else 10_000), size, None, node_size)


def price(
    compressor: Compressor,
    gradient: Tensor,
    size: int,
    state: State | None = None,
    node_size: int = 1,
) -> Price:
    """Run one exchange as rank 0 of `size`.

    What a rank of the world sends to another is taken to leave the host.

    Args:
        gradient: as the compressor takes it; it is left alone.
        state: of an earlier step, changed in place; none at the first.
        node_size: ranks on each host.
    """
    sizes = {"world": size, "node": node_size, "across": size // node_size}
    at = At("price", 0, size, groups={name: (0, count) for name, count in sizes.items()})
    gradient = gradient.clone()
    generator = compressor(gradient, {} if state is None else state, at)
    operations, kernel_s, answer = [], 0.0, None
    while True:
        began = moment(gradient.device)
        try:
            request = generator.send(answer)
        except StopIteration:
            return Price(tuple(operations), kernel_s + moment(gradient.device) - began)
        kernel_s += moment(gradient.device) - began
        sent = sent_bytes(request, 0, sizes[request.group])
        dtype = request.tensor.dtype if isinstance(request, Sum) else torch.float32
        operations.append(Operation(_kind(request, gradient), sent, request.group, dtype))
        answer = _invent(request, sizes[request.group])


def sent_bytes(request: Request, rank: int, size: int) -> float:
    """Bytes that a rank of a group of `size` sends to answer `request`: rings, and pairwise exchange."""
    match request:
        case Sum(tensor):
            return 2 * (size - 1) / size * tensor.nbytes
        case Gather(tensor, _, lengths):
            everyone = sum(lengths) * tensor.itemsize if lengths else size * tensor.nbytes
            return everyone * (size - 1) / size
        case AllToAll(tensors, _, _):
            return sum(tensor.nbytes for other, tensor in enumerate(tensors) if other != rank)


def _kind(request: Request, gradient: Tensor) -> str:
    if isinstance(request, Sum):
        return "bucket" if request.tensor.data_ptr() == gradient.data_ptr() else "sum"
    return "gather" if isinstance(request, Gather) else "all_to_all"


def _invent(request: Request, size: int) -> Any:
    """An answer of the right shape: every rank as if it were this one; zeros where it has nothing of that length."""
    match request:
        case Sum(tensor):
            return tensor.clone()
        case Gather(tensor, _, None):
            return [tensor.clone() for _ in range(size)]
        case Gather(tensor, _, lengths):
            return [_of_length([tensor], length) for length in lengths]
        case AllToAll(tensors, _, None):
            return [tensors[0].clone() for _ in range(size)]
        case AllToAll(tensors, _, lengths):
            return [_of_length(tensors, length) for length in lengths]


def _of_length(tensors: Sequence[Tensor], length: int) -> Tensor:
    found = next((tensor for tensor in tensors if tensor.numel() == length), None)
    return tensors[0].new_zeros(length) if found is None else found.clone()
