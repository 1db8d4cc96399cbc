"""int8: every block as integers from -127 to 127 times one scale."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hvd_llm.compress.base import compressor
from hvd_llm.compress.blocks import BlockCodec, largest
from hvd_llm.compress.two_phase import two_phase


@dataclass(frozen=True)
class Int8(BlockCodec):
    """With a generator it rounds at random, up with the probability of the fraction, so that the mean is exact."""

    block: int = 512
    bits: int = 8
    random: torch.Generator | None = None

    def quantize(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        scales = largest(blocks) / 127
        codes = blocks / scales
        if self.random is None:
            codes.round_()
        else:
            codes.add_(torch.rand(codes.shape, generator=self.random, device=codes.device)).floor_().clamp_(-127, 127)
        return scales, codes.to(torch.int8)

    def dequantize(self, codes: Tensor, scales: Tensor, out: Tensor) -> None:
        out.copy_(codes.view(torch.int8)).mul_(scales)


@compressor(feedback=0)
def int8(gradient, state, at, block: int = 512, stochastic: bool = False):
    """integers of 8 bits, a scale per block: 4x smaller"""
    random = at.generator(gradient.device, everyone=False) if stochastic else None
    return (yield from two_phase(gradient, at, Int8(block, random=random)))
