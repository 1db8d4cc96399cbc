"""The lockstep driver: N simulated ranks in one process, in the order of a textbook.

For property tests, and to study convergence at sizes that no machine here has.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hvd_llm.compress.base import AllToAll, At, Compressor, Gather, Request, State, Sum


def in_rank_order(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of tensors, one after the other; bfloat16 as the network sums it: in float32, rounded once."""
    total = tensors[0].clone()
    total = total.float() if total.dtype == torch.bfloat16 else total
    for tensor in tensors[1:]:
        total += tensor
    return total.to(tensors[0].dtype)


def reduce(
    compressor: Compressor,
    gradients: Sequence[Tensor],
    states: Sequence[State],
    at: At | None = None,
    add: Callable[[Sequence[Tensor]], Tensor] = in_rank_order,
    node_size: int | None = None,
) -> list[Tensor]:
    """Run one exchange among `len(gradients)` ranks and return each rank's result.

    Args:
        gradients: one tensor per rank, equal in shape; they may be overwritten.
        states: each rank's state, updated in place.
        at: name, step and seed of the exchange; rank, size and groups are filled in.
        add: answers `Sum`: networks add in orders of their own.
        node_size: ranks on each host, one host after the other; all on one if None.
    """
    size = len(gradients)
    groups = _groups(size, node_size or size)
    generators = []
    for rank, (gradient, state) in enumerate(zip(gradients, states, strict=True)):
        places = {name: _place(rank, members) for name, members in groups.items()}
        here = dataclasses.replace(at or At(), rank=rank, size=size, groups=places)
        generators.append(compressor(gradient, state, here))
    answers: dict[int, Any] = dict.fromkeys(range(size))
    waiting: dict[int, Request] = {}
    results: dict[int, Tensor] = {}
    while len(results) < size:
        assert answers, "ranks ask for different things"
        for rank, answer in answers.items():
            try:
                waiting[rank] = generators[rank].send(answer)
            except StopIteration as stop:
                results[rank] = stop.value
        answers = _answer(waiting, groups, add)
    return [results[rank] for rank in range(size)]


def _groups(size: int, node_size: int) -> dict[str, list[range]]:
    """The ranks of all groups, by name."""
    assert size % node_size == 0, f"{size} ranks on hosts of {node_size}"
    return {
        "world": [range(size)],
        "node": [range(first, first + node_size) for first in range(0, size, node_size)],
        "across": [range(place, size, node_size) for place in range(node_size)],
    }


def _place(rank: int, groups: Sequence[range]) -> tuple[int, int]:
    mine = next(ranks for ranks in groups if rank in ranks)
    return mine.index(rank), len(mine)


def _answer(
    waiting: dict[int, Request], groups: Mapping[str, Sequence[range]], add: Callable[[Sequence[Tensor]], Tensor]
) -> dict[int, Any]:
    """Answer the ranks of all groups whose members have all asked; they wait no longer."""
    answers: dict[int, Any] = {}
    for name, of_name in groups.items():
        for ranks in of_name:
            if all(rank in waiting and waiting[rank].group == name for rank in ranks):
                answers |= zip(ranks, _carry_out([waiting.pop(rank) for rank in ranks], add), strict=True)
    return answers


def _carry_out(requests: Sequence[Request], add: Callable[[Sequence[Tensor]], Tensor]) -> list[Any]:
    """Answer one request of every rank of a group; every answer is that rank's own copy."""
    kind = type(requests[0])
    assert all(type(request) is kind for request in requests), "ranks ask for different things"
    if kind is Sum:
        total = add([request.tensor for request in requests])
        return [total.clone() for _ in requests]
    if kind is Gather:
        expected = list(requests[0].lengths or [requests[0].tensor.numel()] * len(requests))
        assert [request.tensor.numel() for request in requests] == expected, "lengths are not as announced"
        return [[request.tensor.clone() for request in requests] for _ in requests]
    assert kind is AllToAll
    received = [[request.tensors[rank].clone() for request in requests] for rank in range(len(requests))]
    for request, came in zip(requests, received, strict=True):
        lengths = [tensor.numel() for tensor in came]
        assert list(request.lengths or lengths) == lengths, "lengths are not as announced"
    return received
