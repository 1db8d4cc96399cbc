"""sparseloco: topk of every chunk with 2 bits for each value (Sarfi et al. 2025, arXiv:2508.15706).

Meant for pseudo-gradients (what many local steps changed), with an error that decays. A value is its sign and one of
two magnitudes of its chunk: the means of those below and of those above the chunk's mean.
"""

import torch
from torch import Tensor

from hvd_llm.compress.base import compressor
from hvd_llm.compress.bits import pack_12, pack_signs, unpack_12, unpack_signs
from hvd_llm.compress.topk import chunks, exchange


def pack(values: Tensor, indices: Tensor) -> Tensor:
    """Values and indices (rows, keep) → (bytes,) uint8: two bfloat16 levels, signs, levels' bits, indices."""
    magnitude = values.abs()
    above = magnitude - magnitude.mean(1, keepdim=True)
    strong = (above >= 0).float()
    high = (magnitude * strong).sum(1) / strong.sum(1).clamp(min=1)
    low = (magnitude * (1 - strong)).sum(1) / (1 - strong).sum(1).clamp(min=1)
    levels = torch.stack([low, high], 1).to(torch.bfloat16).view(-1).view(torch.uint8)
    return torch.cat([levels, pack_signs(values).view(-1), pack_signs(above).view(-1), pack_12(indices).view(-1)])


def unpack(payload: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Undo `pack`, as far as it can be."""
    rows = payload.numel() // (4 + keep // 4 + keep * 3 // 2)
    levels, signs, strong, indices = payload.split([4 * rows, rows * keep // 8, rows * keep // 8, rows * keep * 3 // 2])
    low, high = levels.view(torch.bfloat16).float().view(rows, 2, 1).unbind(1)
    sign, is_strong = (unpack_signs(bits.view(rows, -1), low.new_empty(rows, keep)) for bits in (signs, strong))
    return torch.where(is_strong > 0, high, low) * sign, unpack_12(indices.view(rows, -1))


@compressor(feedback=0.95)
def sparseloco(gradient, state, at, keep: int = 64):
    """the largest `keep` of every 4096 elements in 2 bits each, with decaying error: 141x smaller for 2 ranks"""
    rows = chunks(gradient)
    total = yield from exchange(rows, keep, pack, unpack)
    gradient.copy_(rows.view(-1)[: gradient.numel()])
    return total.view(-1)[: gradient.numel()]
