"""int4 with error feedback: integers from -7 to 7, two to a byte.

After LoCo (Xie et al. 2024, arXiv:2407.04480), whose error is kept in 8 bits and averaged; here it is exact.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hvd_llm.compress.base import compressor
from hvd_llm.compress.blocks import BlockCodec, largest
from hvd_llm.compress.two_phase import two_phase


@dataclass(frozen=True)
class Int4(BlockCodec):
    """The first half of a block lies in the low half-bytes, the second in the high ones."""

    block: int = 256
    bits: int = 4

    def quantize(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        scales = largest(blocks) / 7
        codes = (blocks / scales).round_().add_(8).to(torch.uint8)
        half = self.block // 2
        return scales, codes[:, :half] | codes[:, half:] << 4

    def dequantize(self, codes: Tensor, scales: Tensor, out: Tensor) -> None:
        half = self.block // 2
        out[:, :half].copy_(codes & 15)
        out[:, half:].copy_(codes >> 4)
        out.sub_(8).mul_(scales)


@compressor(feedback=1)
def int4(gradient, state, at, block: int = 256):
    """integers of 4 bits with error feedback (LoCo): 8x smaller"""
    return (yield from two_phase(gradient, at, Int4(block)))
