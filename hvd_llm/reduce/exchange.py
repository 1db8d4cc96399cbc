"""The Horovod driver: compressor generators, run over a `Comm` without ever blocking in between.

It is advanced whenever somebody looks (`advance`) and its pending operations are ready, so that the rounds
of several buckets overlap with each other and with backward.
"""

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hvd_llm.comm import Comm, Group, Handle
from hvd_llm.compress.base import AllToAll, Gather, Request, Sum
from hvd_llm.reduce.pricing import sent_bytes


class Exchange:
    """One bucket's exchange in one step. Round k's operations are `{name}.{k}.{first generator it is for}`.

    A bucket may hold several generators of one kind, a stack of matrices each. They go from round to round together,
    and their sums of one dtype travel as one operation; one may be done before the others.

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
            groups: what the names in requests ("world", "node", …) stand for on this rank.
        """
        self._results: dict[int, Tensor] = {}
        self.payload_bytes, self.sent_bytes = 0, 0.0
        self._name, self._generators, self._comm, self._groups = name, generators, comm, groups
        self.rounds = 0
        self._requests: dict[int, Request] = {}  # generator → what it waits for
        self._pending: list[tuple[Handle, list[int]]] = []  # and the generators that it is for
        self._resume(dict.fromkeys(range(len(generators))))

    def advance(self) -> bool:
        """Take every step that needs no waiting; return whether the exchange is over."""
        while self._pending and all(handle.ready() for handle, _ in self._pending):
            self._resume(self._answers())
        return not self._pending

    def finish(self) -> list[Tensor]:
        """Wait for all rounds and return the reduced gradients, one for each generator."""
        while self._pending:
            self._resume(self._answers())
        return [self._results[index] for index in range(len(self._generators))]

    def _answers(self) -> dict[int, Any]:
        answers = {}
        for handle, indices in self._pending:
            answer = handle.wait()
            if len(indices) == 1:
                answers[indices[0]] = answer
                continue
            sums = [self._requests[index].tensor for index in indices]
            parts = answer.split([tensor.numel() for tensor in sums])
            answers |= {index: part.view_as(sum) for index, part, sum in zip(indices, parts, sums, strict=True)}
        return answers

    def _resume(self, answers: Mapping[int, Any]) -> None:
        self._requests = {}
        for index, answer in answers.items():
            try:
                self._requests[index] = self._generators[index].send(answer)
            except StopIteration as stop:
                self._results[index] = stop.value
        requests = list(self._requests.values())
        for request in requests:
            if request.group != "node":
                self.payload_bytes += request.payload_bytes
                self.sent_bytes += sent_bytes(request, *self._comm.place(self._groups[request.group]))
        together: dict[tuple, list[int]] = {}
        for index, request in self._requests.items():
            kind = (request.group, request.tensor.dtype) if isinstance(request, Sum) else (index,)
            together.setdefault(kind, []).append(index)
        name = f"{self._name}.{self.rounds}"
        self._pending = [
            (self._issue(f"{name}.{indices[0]}", self._joined(indices)), indices) for indices in together.values()
        ]
        self.rounds += bool(requests)

    def _joined(self, indices: list[int]) -> Request:
        requests = [self._requests[index] for index in indices]
        if len(requests) == 1:
            return requests[0]
        return Sum(torch.cat([request.tensor.reshape(-1) for request in requests]), requests[0].group)

    def _issue(self, name: str, request: Request) -> Handle:
        group = self._groups[request.group]
        match request:
            case Sum(tensor):
                return self._comm.sum_async(name, tensor, group)
            case Gather(tensor, _, lengths):
                return self._comm.gather_async(name, tensor, group, lengths)
            case AllToAll(tensors, _, _):
                return self._comm.all_to_all_async(name, tensors, group)
