"""fp8: 4 bits of exponent and 3 of fraction (e4m3), every block scaled to their range."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hvd_llm.compress.base import compressor
from hvd_llm.compress.blocks import BlockCodec, largest
from hvd_llm.compress.two_phase import two_phase

_FORMAT = torch.float8_e4m3fn


@dataclass(frozen=True)
class Fp8(BlockCodec):
    block: int = 512
    bits: int = 8

    def quantize(self, blocks: Tensor, scales: Tensor, codes: Tensor) -> None:
        torch.div(largest(blocks), torch.finfo(_FORMAT).max, out=scales)
        codes.view(_FORMAT).copy_(torch.div(blocks, scales).view(-1))
        scales.mul_(256)

    def levels(self, codes: Tensor, out: Tensor) -> Tensor:
        # e4m3 is fp16 with fewer bits at both ends, 2^8 larger; torch's own conversion is twenty times slower.
        # The sign, which came twice with the wider type, is taken out of the exponent.
        bits = codes.view(torch.int8).to(torch.int16).mul_(128).bitwise_and_(~0x4000)
        return out.copy_(bits.view(torch.float16).view_as(out))


@compressor(feedback=0)
def fp8(gradient, state, at, block: int = 512):
    """floats of 8 bits (e4m3), a scale per block: 4x smaller"""
    return (yield from two_phase(gradient, at, Fp8(block)))
