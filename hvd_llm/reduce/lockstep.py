"""The lockstep driver: N simulated ranks in one process, in the order of a textbook.

For property tests, and to study convergence at sizes that no machine here has. All ranks belong to every
group: hosts do not exist here.
"""

import dataclasses
from collections.abc import Callable, Generator, Sequence
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
) -> list[Tensor]:
    """Run one exchange among `len(gradients)` ranks and return each rank's result.

    Args:
        gradients: one tensor per rank, equal in shape; they may be overwritten.
        states: each rank's state, updated in place.
        at: name, step and seed of the exchange; rank and size are filled in.
        add: answers `Sum`: networks add in orders of their own.
    """
    ranks = [dataclasses.replace(at or At(), rank=rank, size=len(gradients)) for rank in range(len(gradients))]
    generators = [compressor(*mine) for mine in zip(gradients, states, ranks, strict=True)]
    answers: list[Any] = [None] * len(generators)
    results: list[Tensor] = []
    while not results:
        steps = [_advance(generator, answer) for generator, answer in zip(generators, answers, strict=True)]
        finished = [isinstance(step, StopIteration) for step in steps]
        assert all(finished) or not any(finished), "some ranks ended before others"
        if all(finished):
            results = [step.value for step in steps]
        else:
            answers = _carry_out(steps, add)
    return results


def _advance(generator: Generator, answer: Any) -> Request | StopIteration:
    try:
        return generator.send(answer)
    except StopIteration as stop:
        return stop


def _carry_out(requests: Sequence[Request], add: Callable[[Sequence[Tensor]], Tensor]) -> list[Any]:
    """Answer one request of every rank; every answer is that rank's own copy."""
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
