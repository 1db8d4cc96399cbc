"""Flat buckets: one contiguous tensor that holds the gradients of several parameters, sent as one operation."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hvd_llm.compress.base import Compressor
from hvd_llm.device import moment
from hvd_llm.reduce.policy import Planned

Zeros = Callable[[int, torch.dtype, torch.device], Tensor]


@dataclass(frozen=True)
class Segment:
    """Parameters whose gradients lie side by side in a bucket and go through one compressor together.

    Attributes:
        tensor: their part of the bucket: (elements,), or (count, rows, columns) for a compressor of matrices.
        views: parameter name → its part of `tensor`, shaped like the parameter.
    """

    compressor: Compressor
    tensor: Tensor
    views: Mapping[str, Tensor]

    def cut(self, slot: Tensor) -> dict[str, Tensor]:
        """Cut a tensor whose first dimension is that of `tensor` by parameter."""
        sizes = [1] * len(self.views) if self.tensor.dim() == 3 else [view.numel() for view in self.views.values()]
        return dict(zip(self.views, slot.split(sizes), strict=True))


@dataclass(frozen=True)
class Bucket:
    """Some parameters' gradients, in the order in which they become ready.

    Attributes:
        index: place among the buckets, in the order in which they are sent.
        flat: (elements,) in the parameters' dtype and on their device.
        segments: what it consists of, in order; their compressors are of one kind.
    """

    index: int
    flat: Tensor
    segments: tuple[Segment, ...]

    @property
    def views(self) -> dict[str, Tensor]:
        """Parameter name → its part of `flat`, shaped like the parameter."""
        return {name: view for segment in self.segments for name, view in segment.views.items()}


def allocate(parameters: Mapping[str, nn.Parameter], plan: Sequence[Planned], zeros: Zeros) -> list[Bucket]:
    """Make the planned buckets for `parameters`.

    Args:
        zeros: makes a flat tensor, from its length, dtype and device.
    """
    return [
        _bucket(index, {name: parameters[name] for name in planned.names}, zeros, planned.compressor)
        for index, planned in enumerate(plan)
    ]


def _bucket(index: int, parameters: Mapping[str, nn.Parameter], zeros: Zeros, compressor: Compressor) -> Bucket:
    stacks: dict[tuple, list[str]] = {}
    for name, parameter in parameters.items():
        stacks.setdefault(_matrix(parameter) if compressor.takes == "matrices" else (), []).append(name)
    first = next(iter(parameters.values()))
    flat = zeros(sum(parameter.numel() for parameter in parameters.values()), first.dtype, first.device)
    segments, begin = [], 0
    for shape, names in stacks.items():
        lengths = [parameters[name].numel() for name in names]
        part = flat[begin : begin + sum(lengths)]
        pieces = zip(names, part.split(lengths), strict=True)
        views = {name: piece.view_as(parameters[name]) for name, piece in pieces}
        segments.append(Segment(compressor, part.view(len(names), *shape) if shape else part, views))
        begin += sum(lengths)
    return Bucket(index, flat, tuple(segments))


def _matrix(parameter: Tensor) -> tuple[int, int]:
    """A parameter's shape as rows and columns; a vector is one column."""
    rows = parameter.shape[0] if parameter.dim() else 1
    return rows, parameter.numel() // rows


def lookup(name: str) -> str:
    """What stands for the part of a parameter's gradient that comes from looking up in it."""
    return f"{name}.lookup"


def total_norm(buckets: Iterable[Bucket]) -> float:
    """The L2 norm of all that is in them; of equal buckets the same bits on all ranks."""
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(bucket.flat) for bucket in buckets])))


def readiness(parameters: Mapping[str, nn.Parameter], passes: Callable[[], None]) -> dict[str, float]:
    """When a real backward pass completes gradients: name → seconds from the start, in that order; unused ones last.

    Args:
        passes: runs a forward and a backward pass; its gradients are dropped.
    """
    seen: dict[str, float] = {}

    def arrived(name: str, parameter: Tensor) -> None:
        seen[name] = moment(parameter.device)

    hooks = [p.register_post_accumulate_grad_hook(partial(arrived, name)) for name, p in parameters.items()]
    began = moment(next(iter(parameters.values())).device)
    try:
        passes()
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in parameters.values():
            parameter.grad = None
    over = moment(next(iter(parameters.values())).device)
    seen |= {name: over for name in parameters if name not in seen}
    return {name: when - began for name, when in seen.items()}
