"""Whether replicas still hold the same weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

_MULTIPLIER = 0x9E3779B97F4A7C15 - 2**64  # odd, so that no parameter's sum is lost (2^64 / golden ratio)


@torch.no_grad()
def fingerprint(tensors: Mapping[str, Tensor]) -> Tensor:
    """A hash of the tensors' bits: int64 (1,), in one pass over memory, independent of the order of addition.

    It adds the words of each tensor modulo 2^64, so any single change is seen; it is no defence against malice.
    """
    total = torch.zeros((), dtype=torch.int64)
    for tensor in tensors.values():
        words = tensor.detach().contiguous().view(-1).view(torch.int32 if tensor.element_size() == 4 else torch.int16)
        total = total * _MULTIPLIER + words.sum(dtype=torch.int64).cpu()
    return total.view(1)
