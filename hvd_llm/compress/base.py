"""What a compressor is: a generator that yields what it wants communicated.

    def none(gradient, state):
        return (yield Sum(gradient))

A driver runs it: it carries out each request among the ranks of a group and sends the answer back into
the generator, whose return value is the sum over the group, shaped like `gradient` and the same on all ranks.
The generator knows no transport, so the same code runs over Horovod, on simulated ranks, or to be priced.

A compressor that asks for other groups than "world" names them in an attribute, so that they are made before
training starts: `none.groups = ("node", "across")`.

`state` is a dict of tensors, empty at first, that belongs to this gradient (bucket or parameter) on this
rank; whatever is kept in it is checkpointed. A tensor that was yielded belongs to the driver, which may
overwrite it.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Sum:
    """Answer: the sum of every rank's tensor. All have one shape and dtype."""

    tensor: Tensor
    group: str = "world"

    @property
    def payload_bytes(self) -> int:
        return self.tensor.nbytes


@dataclass(frozen=True)
class Gather:
    """Answer: the list of every rank's tensor, by group rank. All have one shape and dtype."""

    tensor: Tensor
    group: str = "world"

    @property
    def payload_bytes(self) -> int:
        return self.tensor.nbytes


@dataclass(frozen=True)
class AllToAll:
    """Tensor i (1-D) goes to group rank i. Answer: the list of what came, by group rank."""

    tensors: Sequence[Tensor]
    group: str = "world"

    @property
    def payload_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


Request = Sum | Gather | AllToAll
State = dict[str, Tensor]
Compressor = Callable[[Tensor, State], Generator[Request, Any, Tensor]]
