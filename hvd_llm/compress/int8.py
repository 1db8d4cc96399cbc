"""int8: every block as integers from -127 to 127 times one scale."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hvd_llm.compress.base import compressor
from hvd_llm.compress.blocks import BlockCodec, largest, rounded
from hvd_llm.compress.two_phase import two_phase


@dataclass(frozen=True)
class Int8(BlockCodec):
    """With a generator it rounds at random, up with the probability of the fraction, so that the mean is exact."""

    block: int = 512
    bits: int = 8
    random: torch.Generator | None = None

    def quantize(self, blocks: Tensor, scales: Tensor, codes: Tensor) -> None:
        torch.div(largest(blocks), 127, out=scales)
        if self.random is None:
            integers = rounded(blocks, scales)
        else:
            fractions = torch.rand(blocks.shape, generator=self.random, device=blocks.device)
            integers = fractions.addcdiv_(blocks, scales).floor_().clamp_(-127, 127)
        codes.view(torch.int8).copy_(integers.view(-1))

    def levels(self, codes: Tensor, out: Tensor) -> Tensor:
        return out.copy_(codes.view(torch.int8).view_as(out))


@compressor(feedback=0)
def int8(gradient, state, at, block: int = 512, stochastic: bool = False):
    """integers of 8 bits, a scale per block: 4x smaller"""
    random = at.generator(gradient.device, everyone=False) if stochastic else None
    return (yield from two_phase(gradient, at, Int8(block, random=random)))
