"""onebit with error feedback: the sign of every element, and every block's mean magnitude.

Seide et al. 2014; Tang et al. 2021 (arXiv:2102.02888), whose two-phase sum this is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hvd_llm.compress.base import compressor
from hvd_llm.compress.bits import pack_signs, unpack_signs
from hvd_llm.compress.blocks import BlockCodec
from hvd_llm.compress.two_phase import two_phase


@dataclass(frozen=True)
class OneBit(BlockCodec):
    block: int = 1024
    bits: int = 1

    def quantize(self, blocks: Tensor, scales: Tensor, codes: Tensor) -> None:
        codes.copy_(pack_signs(blocks.view(-1)))
        torch.mean(blocks.abs(), 1, keepdim=True, out=scales)

    def levels(self, codes: Tensor, out: Tensor) -> Tensor:
        return unpack_signs(codes, out)


@compressor(feedback=1)
def onebit(gradient, state, at, block: int = 1024):
    """signs and a mean magnitude per block, with error feedback: 31x smaller"""
    return (yield from two_phase(gradient, at, OneBit(block)))
