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


class Exchange:
    """One bucket's exchange in one step. Round k is the operation `{name}.{k}`.

    A bucket may hold several generators of one kind, a stack of matrices each. They go from round to round together,
    and their sums travel as one operation.
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
        self.results: list[Tensor] = []
        self.payload_bytes = 0
        self._name, self._generators, self._comm, self._groups = name, generators, comm, groups
        self._round = 0
        self._pending: list[Handle] = []
        self._resume([None] * len(generators))

    def advance(self) -> bool:
        """Take every step that needs no waiting; return whether the exchange is over."""
        while self._pending and all(handle.ready() for handle in self._pending):
            self._resume(self._answers())
        return not self._pending

    def finish(self) -> list[Tensor]:
        """Wait for all rounds and return the reduced gradients, one for each generator."""
        while self._pending:
            self._resume(self._answers())
        return self.results

    def _answers(self) -> list[Any]:
        answers = [handle.wait() for handle in self._pending]
        if len(answers) < len(self._generators):
            answers = [
                part.view_as(request.tensor)
                for part, request in zip(answers[0].split(self._lengths), self._requests, strict=True)
            ]
        return answers

    def _resume(self, answers: Sequence[Any]) -> None:
        steps = [_advance(generator, answer) for generator, answer in zip(self._generators, answers, strict=True)]
        if isinstance(steps[0], StopIteration):
            self._pending, self.results = [], [step.value for step in steps]
            return
        self._requests = steps
        self.payload_bytes += sum(request.payload_bytes for request in steps)
        name = f"{self._name}.{self._round}"
        if len(steps) > 1 and all(isinstance(request, Sum) for request in steps):
            self._lengths = [request.tensor.numel() for request in steps]
            joined = torch.cat([request.tensor.reshape(-1) for request in steps])
            self._pending = [self._issue(name, Sum(joined, steps[0].group))]
        else:
            self._pending = [self._issue(f"{name}.{index}", request) for index, request in enumerate(steps)]
        self._round += 1

    def _issue(self, name: str, request: Request) -> Handle:
        group = self._groups[request.group]
        match request:
            case Sum(tensor):
                return self._comm.sum_async(name, tensor, group)
            case Gather(tensor, _, lengths):
                return self._comm.gather_async(name, tensor, group, lengths)
            case AllToAll(tensors, _, _):
                return self._comm.all_to_all_async(name, tensors, group)


def _advance(generator: Generator, answer: Any) -> Request | StopIteration:
    try:
        return generator.send(answer)
    except StopIteration as stop:
        return stop
