"""twobit with error feedback: the sign of every element, whether it is weak or strong, every block's mean magnitude.

The bound between weak and strong, and what either stands for, are those of the least mean square error for normal
numbers (Max 1960, "Quantizing for minimum distortion", table I, N = 4), in units of their mean magnitude. Whatever the
numbers are, what is left of a block is smaller than the block was, unless that was zero: error feedback needs it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hvd_llm.compress.base import compressor
from hvd_llm.compress.bits import pack_signs, unpack_signs
from hvd_llm.compress.blocks import BlockCodec
from hvd_llm.compress.two_phase import two_phase

_MEAN = (2 / torch.pi) ** 0.5  # magnitude of a normal number of variance 1
BOUND, WEAK, STRONG = 0.9816 / _MEAN, 0.4528 / _MEAN, 1.510 / _MEAN


@dataclass(frozen=True)
class TwoBit(BlockCodec):
    """All signs, then, in the same way, all strengths."""

    block: int = 256
    bits: int = 2

    def quantize(self, blocks: Tensor, scales: Tensor, codes: Tensor) -> None:
        signs, strengths = codes.view(2, -1)
        signs.copy_(pack_signs(blocks.view(-1)))
        magnitudes = blocks.abs()
        torch.mean(magnitudes, 1, keepdim=True, out=scales)
        strengths.copy_(pack_signs(magnitudes.sub_(scales, alpha=BOUND).view(-1)))

    def levels(self, codes: Tensor, out: Tensor) -> Tensor:
        signs, strengths = codes.view(2, -1)
        unpack_signs(strengths, out).mul_((STRONG - WEAK) / 2).add_((STRONG + WEAK) / 2)
        return out.mul_(unpack_signs(signs, torch.empty_like(out)))


@compressor(feedback=1)
def twobit(gradient, state, at, block: int = 256):
    """signs, one of two strengths, and a mean magnitude per block, with error feedback: 15x smaller"""
    return (yield from two_phase(gradient, at, TwoBit(block)))
