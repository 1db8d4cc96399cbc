"""The pricing driver: what a compressor costs one rank of any number, without any other rank.

It runs generators on real numbers, as rank 0, and answers their requests with made-up ones of the right size. Bytes
are those of the algorithms that MPI and Gloo use for large tensors; time is that of the generators alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hvd_llm.compress.base import AllToAll, At, Compressor, Gather, Request, State, Sum
from hvd_llm.device import moment
from hvd_llm.reduce.rounds import Rounds

# Bytes on Ethernet for each that is sent: a frame of 1514 carries 1448 of TCP. Acknowledgements are not in it, nor what
# Horovod's ranks say about operations.
FRAMING = 1514 / 1448


@dataclass(frozen=True)
class Operation:
    """What one request costs a rank.

    Attributes:
        kind: "bucket" for a sum of the gradient where it lies, which ranks that share memory do there; "sum", "gather",
            "all_to_all".
        sent_bytes: payload that the rank sends, what it passes on for others included.
        group: name of the group among which it does.
    """

    kind: str
    sent_bytes: float
    group: str = "world"


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
        """`sent_bytes`, as Ethernet carries it (see `FRAMING`)."""
        return self.sent_bytes * FRAMING


def rehearse(compressor: Compressor, size: int, node_size: int) -> None:
    """Find out whether a compressor can be used among so many ranks.

    Raises:
        UserError: it says that it cannot.
    """
    shape = (2, 64, 48) if compressor.takes == "matrices" else (10_000,)
    price(compressor, [torch.ones(shape)], size, node_size=node_size)


def price(
    compressor: Compressor,
    gradients: Sequence[Tensor],
    size: int,
    states: Sequence[State] | None = None,
    node_size: int = 1,
) -> Price:
    """Run one exchange as rank 0 of `size`.

    What a rank of the world sends to another is taken to leave the host.

    Args:
        gradients: as the compressor takes them, of the same bucket; they are left alone.
        states: of an earlier step, changed in place; none at the first.
        node_size: ranks on each host.
    """
    sizes = {"world": size, "node": node_size, "across": size // node_size}
    at = At("price", 0, size, groups={name: (0, count) for name, count in sizes.items()})
    gradients = [gradient.clone() for gradient in gradients]
    states = [{} for _ in gradients] if states is None else states
    rounds = Rounds([compressor(gradient, state, at) for gradient, state in zip(gradients, states, strict=True)])
    operations, kernel_s, step = [], 0.0, rounds.begin
    while True:
        began = moment(gradients[0].device)
        requests = step()
        kernel_s += moment(gradients[0].device) - began
        if not requests:
            for index, gradient in enumerate(gradients):
                compressor.check(rounds.results[index], gradient.shape)
            return Price(tuple(operations), kernel_s)
        for request in requests:
            sent = sent_bytes(request, 0, sizes[request.group])
            operations.append(Operation(_kind(request, gradients), sent, request.group))
        step = partial(rounds.resume, [_invent(request, sizes[request.group]) for request in requests])


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


def _kind(request: Request, gradients: Sequence[Tensor]) -> str:
    if isinstance(request, Sum):
        whole = len(gradients) == 1 and request.tensor.data_ptr() == gradients[0].data_ptr()
        return "bucket" if whole else "sum"
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
