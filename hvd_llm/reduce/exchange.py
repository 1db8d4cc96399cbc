"""The Horovod driver: one compressor generator, run over a `Comm` without ever blocking in between.

It is advanced whenever somebody looks (`advance`) and its pending operation is ready, so that the rounds
of several buckets overlap with each other and with backward.
"""

from collections.abc import Generator, Mapping
from typing import Any

from torch import Tensor

from hvd_llm.comm import Comm, Group, Handle
from hvd_llm.compress.base import AllToAll, Gather, Request, Sum


class Exchange:
    """One bucket's exchange in one step. Round k is the operation `{name}.{k}`."""

    def __init__(self, name: str, generator: Generator[Request, Any, Tensor], comm: Comm, groups: Mapping[str, Group]):
        """Send the first request.

        Args:
            name: the same on all ranks, unique among the exchanges under way.
            groups: what the names in requests ("world", "node", …) stand for on this rank.
        """
        self.result: Tensor | None = None
        self.payload_bytes = 0
        self._name, self._generator, self._comm, self._groups = name, generator, comm, groups
        self._round = 0
        self._pending: Handle | None = None
        self._resume(None)

    def advance(self) -> bool:
        """Take every step that needs no waiting; return whether the exchange is over."""
        while self._pending is not None and self._pending.ready():
            self._resume(self._pending.wait())
        return self._pending is None

    def finish(self) -> Tensor:
        """Wait for all rounds and return the reduced gradient."""
        while self._pending is not None:
            self._resume(self._pending.wait())
        assert self.result is not None
        return self.result

    def _resume(self, answer: Any) -> None:
        try:
            request = self._generator.send(answer)
        except StopIteration as stop:
            self._pending, self.result = None, stop.value
            return
        self._pending = self._issue(request)
        self.payload_bytes += request.payload_bytes
        self._round += 1

    def _issue(self, request: Request) -> Handle:
        name, group = f"{self._name}.{self._round}", self._groups[request.group]
        match request:
            case Sum(tensor):
                return self._comm.sum_async(name, tensor, group)
            case Gather(tensor):
                return self._comm.gather_async(name, tensor, group)
            case AllToAll(tensors):
                return self._comm.all_to_all_async(name, tensors, group)
