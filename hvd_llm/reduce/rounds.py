"""Generators that go from round to round together, their sums of one dtype joined into one. No transport in it.

A bucket may hold several generators of one kind, a stack of matrices each; one may be done before the others.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hvd_llm.compress.base import Request, Sum


class Rounds:
    """Attributes:
    results: what generators that are over have returned, by their number.
    begun: rounds so far.
    """

    def __init__(self, generators: Sequence[Generator[Request, Any, Tensor]]):
        self.results: dict[int, Tensor] = {}
        self.begun = 0
        self._generators = generators
        self._asked: list[_Asked] = []

    def begin(self) -> list[Request]:
        """The first requests."""
        return self._send(dict.fromkeys(range(len(self._generators))))

    def resume(self, answers: Sequence[Any]) -> list[Request]:
        """The next requests; none if all generators are over.

        Args:
            answers: to the last ones, in their order.
        """
        shares = [asked.shares(answer) for asked, answer in zip(self._asked, answers, strict=True)]
        return self._send({index: answer for each in shares for index, answer in each.items()})

    def _send(self, answers: Mapping[int, Any]) -> list[Request]:
        requests = {}
        for index, answer in answers.items():
            try:
                requests[index] = self._generators[index].send(answer)
            except StopIteration as stop:
                self.results[index] = stop.value
        self._asked = _join(requests)
        self.begun += bool(requests)
        return [asked.request for asked in self._asked]


@dataclass(frozen=True)
class _Asked:
    """Attributes:
    request: of one generator, or the sum that is several generators' requests joined.
    parts: what they asked for, by their number.
    """

    request: Request
    parts: Mapping[int, Request]

    def shares(self, answer: Any) -> dict[int, Any]:
        """Each generator's part of the answer."""
        if len(self.parts) == 1:
            return dict.fromkeys(self.parts, answer)
        given = [part.tensor for part in self.parts.values()]
        pieces = answer.split([tensor.numel() for tensor in given])
        return {index: piece.view_as(tensor) for index, piece, tensor in zip(self.parts, pieces, given, strict=True)}


def _join(requests: Mapping[int, Request]) -> list[_Asked]:
    together: dict[tuple, dict[int, Request]] = {}
    for index, request in requests.items():
        kind = (request.group, request.tensor.dtype) if isinstance(request, Sum) else (index,)
        together.setdefault(kind, {})[index] = request
    return [_Asked(_one(list(parts.values())), parts) for parts in together.values()]


def _one(requests: Sequence[Request]) -> Request:
    if len(requests) == 1:
        return requests[0]
    return Sum(torch.cat([request.tensor.reshape(-1) for request in requests]), requests[0].group)
