"""The pricing driver: what a compressor costs one rank of any number, without any other rank.

It runs the generator on real numbers, as rank 0, and answers its requests with made-up ones of the right size. Bytes
are those of the algorithms that MPI and Gloo use for large tensors; time is that of the generator alone.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hvd_llm.compress.base import AllToAll, At, Compressor, Gather, Request, State, Sum


@dataclass(frozen=True)
class Price:
    """What one exchange costs a rank.

    Attributes:
        rounds: operations, one after the other.
        sent_bytes: payload that the rank sends, what it passes on for others included; nothing within its host.
        node_bytes: the same within its host.
        kernel_s: seconds of computing.
    """

    rounds: int
    sent_bytes: float
    node_bytes: float
    kernel_s: float

    @property
    def wire_bytes(self) -> float:
        """Bytes on Ethernet: a frame of 1514 carries 1448 of TCP. Acknowledgements and negotiation are not in it."""
        return self.sent_bytes * 1514 / 1448


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
    generator = compressor(gradient.clone(), {} if state is None else state, at)
    sent = dict.fromkeys(sizes, 0.0)
    rounds, kernel_s, answer = 0, 0.0, None
    while True:
        began = time.perf_counter()
        try:
            request = generator.send(answer)
        except StopIteration:
            kernel_s += time.perf_counter() - began
            return Price(rounds, sent["world"] + sent["across"], sent["node"], kernel_s)
        kernel_s += time.perf_counter() - began
        rounds += 1
        sent[request.group] += sent_bytes(request, sizes[request.group])
        answer = _invent(request, sizes[request.group])


def sent_bytes(request: Request, size: int) -> float:
    """Bytes that rank 0 of a group of `size` sends to answer `request`: rings, and pairwise exchange."""
    match request:
        case Sum(tensor):
            return 2 * (size - 1) / size * tensor.nbytes
        case Gather(tensor, _, lengths):
            everyone = sum(lengths) * tensor.itemsize if lengths else size * tensor.nbytes
            return everyone * (size - 1) / size
        case AllToAll(tensors, _, _):
            return sum(tensor.nbytes for tensor in tensors[1:])


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
