"""What communication is, whoever carries it: groups of ranks, named asynchronous operations, handles.

Every operation has a name, the same on all ranks of its group, and may be issued in a different order on
each rank. A name may be in flight once.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from hvd_llm.errors import UserError, mistake


@dataclass(frozen=True)
class Group:
    """Some of the world's ranks, in ascending order. `ranks` is empty for the whole world."""

    name: str
    ranks: tuple[int, ...] = ()


WORLD = Group("world")
_SHORT = 1000  # bytes


class Handle(Protocol):
    """An operation under way."""

    def ready(self) -> bool:
        """Whether `wait` would return at once."""

    def wait(self) -> Any:
        """Wait, then return the operation's result. Call it once."""


class Comm(ABC):
    """This rank's end of the communication between all ranks."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    controller: str  # "mpi", "gloo" or "none"
    shares_memory = False  # whether what `allocate` gave is summed in memory, without the controller

    def allocate(self, elements: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Zeros, (elements,), in memory that suits `sum_async` best. Collective: the same on every rank."""
        return torch.zeros(elements, dtype=dtype, device=device)

    @abstractmethod
    def register(self, groups: Sequence[Group]) -> None:
        """Make groups usable. Collective: every rank passes the same groups in the same order."""

    @abstractmethod
    def ranks(self, group: Group) -> tuple[int, ...]:
        """The world ranks of a group, in the order in which its results come."""

    def place(self, group: Group) -> tuple[int, int]:
        """This rank's place in a group that it is in, and the group's size."""
        ranks = self.ranks(group)
        return ranks.index(self.rank), len(ranks)

    @abstractmethod
    def sum_async(self, name: str, tensor: Tensor, group: Group = WORLD) -> Handle:
        """Sum a floating-point or integer tensor over the group, in place; the handle gives `tensor`.

        bfloat16 is summed in float32 and rounded once.
        """

    @abstractmethod
    def gather_async(
        self, name: str, tensor: Tensor, group: Group = WORLD, lengths: Sequence[int] | None = None
    ) -> Handle:
        """Collect every rank's tensor, of one dtype; the handle gives a list by group rank.

        Args:
            lengths: every rank's number of elements, if the tensors are 1-D and differ; else all have one shape.
        """

    @abstractmethod
    def all_to_all_async(self, name: str, tensors: Sequence[Tensor], group: Group = WORLD) -> Handle:
        """Send `tensors[i]` (1-D, one dtype, any length) to group rank i; the handle gives what came, by rank."""

    @abstractmethod
    def broadcast(self, tensors: Mapping[str, Tensor], root: int = 0) -> None:
        """Overwrite the named tensors with world rank `root`'s."""

    @abstractmethod
    def start_timeline(self, path: Path) -> None:
        """Have the carrier record its own timeline, where it has one."""

    @abstractmethod
    def close(self) -> None:
        """Leave the world; collective when nothing went wrong."""

    def sum(self, name: str, tensor: Tensor, group: Group = WORLD) -> Tensor:
        return self.sum_async(name, tensor, group).wait()

    def gather_objects(self, name: str, value: Any) -> list[Any]:
        """Collect a JSON value from every rank; one operation unless one is long."""
        data = json.dumps(value).encode()
        parts = self.gather_async(name, _bytes(len(data).to_bytes(8, "little") + data[:_SHORT], 8 + _SHORT)).wait()
        lengths = [int.from_bytes(bytes(part[:8].tolist()), "little") for part in parts]
        texts = [bytes(part[8:].tolist()) for part in parts]
        if max(lengths) > _SHORT:
            rest = self.gather_async(f"{name}.rest", _bytes(data[_SHORT:], max(lengths) - _SHORT)).wait()
            texts = [text + bytes(part.tolist()) for text, part in zip(texts, rest, strict=True)]
        return [json.loads(text[:length]) for text, length in zip(texts, lengths, strict=True)]

    def broadcast_object(self, name: str, value: Any) -> Any:
        """Rank 0's JSON value, on every rank."""
        return self.gather_objects(name, value if self.rank == 0 else None)[0]

    def require_same(self, what: str, value: Any) -> None:
        """Compare a JSON value across ranks.

        Raises:
            UserError: on every rank, naming the first one that differs from rank 0.
        """
        values = self.gather_objects(f"same.{what}", value)
        odd = next((rank for rank, other in enumerate(values) if other != values[0]), None)
        if odd is not None:
            raise UserError(f"rank {odd} has another {what} than rank 0: every host needs the same", shared=True)

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Run the body on all ranks; if it raises a user's mistake on any, raise the first one's on all.

        Without this, one rank with a bad disk would leave the others waiting for it. The body must
        not communicate.
        """
        mine = None
        try:
            yield
        except Exception as error:
            if not (known := mistake(error)):
                raise
            mine = str(known)
        for rank, sentence in enumerate(self.gather_objects(f"together.{what}", mine)):
            if sentence is not None:
                raise UserError(sentence if rank == 0 else f"rank {rank}: {sentence}", shared=True)


def _bytes(data: bytes, length: int) -> Tensor:
    """`data` as uint8, (length,), padded with zeros."""
    return torch.frombuffer(bytearray(data.ljust(length, b"\0")), dtype=torch.uint8)
