"""The lockstep driver: N simulated ranks in one process, in the order of a textbook.

For property tests, and to study convergence at sizes that no machine here has. All ranks belong to every
group: hosts do not exist here.
"""

from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from hvd_llm.compress.base import AllToAll, Compressor, Gather, Request, State, Sum


def reduce(compressor: Compressor, gradients: Sequence[Tensor], states: Sequence[State]) -> list[Tensor]:
    """Run one exchange among `len(gradients)` ranks and return each rank's result.

    Args:
        gradients: one tensor per rank, equal in shape; they may be overwritten.
        states: each rank's state, updated in place.
    """
    generators = [compressor(gradient, state) for gradient, state in zip(gradients, states, strict=True)]
    answers: list[Any] = [None] * len(generators)
    results: list[Tensor] = []
    while not results:
        steps = [_advance(generator, answer) for generator, answer in zip(generators, answers, strict=True)]
        finished = [isinstance(step, StopIteration) for step in steps]
        assert all(finished) or not any(finished), "some ranks ended before others"
        if all(finished):
            results = [step.value for step in steps]
        else:
            answers = _carry_out(steps)
    return results


def _advance(generator: Generator, answer: Any) -> Request | StopIteration:
    try:
        return generator.send(answer)
    except StopIteration as stop:
        return stop


def _carry_out(requests: Sequence[Request]) -> list[Any]:
    """Answer one request of every rank; every answer is that rank's own copy."""
    kind = type(requests[0])
    assert all(type(request) is kind for request in requests), "ranks ask for different things"
    if kind is Sum:
        total = requests[0].tensor.clone()
        # bfloat16 as the network sums it: in float32, rounded once
        total = total.float() if total.dtype == torch.bfloat16 else total
        for request in requests[1:]:
            total += request.tensor
        return [total.to(requests[0].tensor.dtype, copy=True) for _ in requests]
    if kind is Gather:
        return [[request.tensor.clone() for request in requests] for _ in requests]
    assert kind is AllToAll
    return [[request.tensors[rank].clone() for request in requests] for rank in range(len(requests))]
