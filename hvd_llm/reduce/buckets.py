"""Flat buckets: one contiguous tensor that holds the gradients of several parameters, sent as one operation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Zeros = Callable[[int, torch.dtype, torch.device], Tensor]


@dataclass(frozen=True)
class Bucket:
    """Some parameters' gradients, in the order in which they become ready.

    Attributes:
        index: place among the buckets, in the order in which they are sent.
        flat: (elements,) in the parameters' dtype and on their device.
        views: parameter name → its part of `flat`, shaped like the parameter.
    """

    index: int
    flat: Tensor
    views: Mapping[str, Tensor]


def plan(sizes: Mapping[str, int], order: Sequence[str], bucket_bytes: float) -> list[list[str]]:
    """Cut `order` into buckets of at most `bucket_bytes` (a larger parameter gets its own).

    Args:
        sizes: parameter name → bytes.
        order: parameter names as their gradients become ready.
    """
    cuts: list[list[str]] = []
    filled = bucket_bytes
    for name in order:
        if filled + sizes[name] > bucket_bytes:
            cuts.append([])
            filled = 0
        cuts[-1].append(name)
        filled += sizes[name]
    return cuts


def allocate(
    parameters: Mapping[str, nn.Parameter], order: Sequence[str], bucket_bytes: float, zeros: Zeros
) -> list[Bucket]:
    """Make the buckets for `parameters`; a bucket holds one dtype and device.

    Args:
        zeros: makes a flat tensor, from its length, dtype and device.
    """
    kinds: dict[tuple, list[str]] = {}
    for name in order:
        kinds.setdefault((parameters[name].dtype, parameters[name].device), []).append(name)
    sizes = {name: parameter.nbytes for name, parameter in parameters.items()}
    cuts = [cut for names in kinds.values() for cut in plan(sizes, names, bucket_bytes)]
    place = {name: index for index, name in enumerate(order)}
    cuts.sort(key=lambda cut: place[cut[-1]])
    return [_bucket(index, {name: parameters[name] for name in cut}, zeros) for index, cut in enumerate(cuts)]


def _bucket(index: int, parameters: Mapping[str, nn.Parameter], zeros: Zeros) -> Bucket:
    first = next(iter(parameters.values()))
    lengths = [parameter.numel() for parameter in parameters.values()]
    flat = zeros(sum(lengths), first.dtype, first.device)
    parts = flat.split(lengths)
    views = {name: part.view_as(parameter) for (name, parameter), part in zip(parameters.items(), parts, strict=True)}
    return Bucket(index, flat, views)


def readiness_order(parameters: Mapping[str, nn.Parameter], backward: Callable[[], None]) -> list[str]:
    """Names in the order in which a real backward pass completes their gradients; unused ones last.

    Args:
        backward: runs one backward pass; its gradients are dropped.
    """
    seen: list[str] = []
    hooks = [
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: seen.append(name))
        for name, parameter in parameters.items()
    ]
    try:
        backward()
    finally:
        for hook in hooks:
            hook.remove()
        for parameter in parameters.values():
            parameter.grad = None
    return seen + [name for name in parameters if name not in set(seen)]
