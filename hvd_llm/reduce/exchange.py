"""The Horovod driver: compressor generators, run over a `Comm` without ever blocking in between.

It is advanced whenever somebody looks (`advance`) and its pending operations are ready, so that the rounds
of several buckets overlap with each other and with backward.
"""

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from torch import Tensor

from hvd_llm.comm import Comm, Group, Handle
from hvd_llm.compress.base import AllToAll, Gather, Request, Sum
from hvd_llm.reduce.pricing import sent_bytes
from hvd_llm.reduce.rounds import Rounds


class Exchange:
    """One bucket's exchange in one step. The operations of round k are called `{name}.{k}.0`, `{name}.{k}.1`, …

    Attributes:
        rounds: that have begun.
        payload_bytes: of all requests so far, but for those among the ranks of a host.
        sent_bytes: what this rank sends for them (see `pricing`).
    """

    def __init__(
        self,
        name: str,
        generators: Sequence[Generator[Request, Any, Tensor]],
        comm: Comm,
        groups: Mapping[str, Group],
    ):
        """Send the first requests.

        Args:
            name: the same on all ranks, unique among the exchanges under way.
            generators: they go from round to round together (see `rounds`).
            groups: what the names in requests ("world", "node", …) stand for on this rank.
        """
        self.payload_bytes, self.sent_bytes = 0, 0.0
        self._name, self._comm, self._groups = name, comm, groups
        self._rounds = Rounds(generators)
        self._pending: list[Handle] = self._send(self._rounds.begin())

    @property
    def rounds(self) -> int:
        return self._rounds.begun

    def advance(self) -> bool:
        """Take every step that needs no waiting; return whether the exchange is over."""
        while self._pending and all(handle.ready() for handle in self._pending):
            self._next()
        return not self._pending

    def finish(self) -> list[Tensor]:
        """Wait for all rounds and return the reduced gradients, one for each generator."""
        while self._pending:
            self._next()
        return [result for _, result in sorted(self._rounds.results.items())]

    def _next(self) -> None:
        self._pending = self._send(self._rounds.resume([handle.wait() for handle in self._pending]))

    def _send(self, requests: Sequence[Request]) -> list[Handle]:
        for request in requests:
            if request.group != "node":
                self.payload_bytes += request.payload_bytes
                self.sent_bytes += sent_bytes(request, *self._comm.place(self._groups[request.group]))
        name = f"{self._name}.{self.rounds - 1}"
        return [self._issue(f"{name}.{place}", request) for place, request in enumerate(requests)]

    def _issue(self, name: str, request: Request) -> Handle:
        group = self._groups[request.group]
        match request:
            case Sum(tensor):
                return self._comm.sum_async(name, tensor, group)
            case Gather(tensor, _, lengths):
                return self._comm.gather_async(name, tensor, group, lengths)
            case AllToAll(tensors, _, _):
                return self._comm.all_to_all_async(name, tensors, group)
