"""int4 with error feedback: integers from -7 to 7, two to a byte.

After LoCo (Xie et al. 2024, arXiv:2407.04480), whose error is kept in 8 bits and averaged; here it is exact.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hvd_llm.compress.base import compressor
from hvd_llm.compress.blocks import BlockCodec, largest, rounded
from hvd_llm.compress.two_phase import two_phase


@dataclass(frozen=True)
class Int4(BlockCodec):
    """A byte is low + 16 high: low from the first half of the numbers that are coded together, high from the second."""

    block: int = 256
    bits: int = 4

    def quantize(self, blocks: Tensor, scales: Tensor, codes: Tensor) -> None:
        torch.div(largest(blocks), 7, out=scales)
        low, high = rounded(blocks, scales).view(2, -1)
        codes.view(torch.int8).copy_(torch.add(low, high, alpha=16))

    def levels(self, codes: Tensor, out: Tensor) -> Tensor:
        low, high = out.view(2, -1)
        low.copy_(codes.view(torch.int8))
        torch.mul(low, 1 / 16, out=high).round_()
        low.sub_(high, alpha=16)
        return out


@compressor(feedback=1)
def int4(gradient, state, at, block: int = 256):
    """integers of 4 bits with error feedback (LoCo): 8x smaller"""
    return (yield from two_phase(gradient, at, Int4(block)))
