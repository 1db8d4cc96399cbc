"""Blocks of numbers that share one float32 scale: what int8, fp8, int4 and onebit have in common.

A payload is every block's scale, then every block's codes.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from hvd_llm.errors import UserError


@dataclass(frozen=True)
class BlockCodec(ABC):
    """Subclasses say what a block's scale is and what its codes are.

    Attributes:
        block: elements that share a scale; a multiple of 32.
        bits: of a code.
    """

    block: int
    bits: int

    def __post_init__(self):
        if self.block <= 0 or self.block % 32:
            raise UserError(f"a compressor's block is {self.block}; it must be a multiple of 32")

    @abstractmethod
    def quantize(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """(blocks, elements) float → scales (blocks, 1) float32 and codes (blocks, block * bits / 8), one byte each."""

    @abstractmethod
    def dequantize(self, codes: Tensor, scales: Tensor, out: Tensor) -> None:
        """Codes (blocks, block * bits / 8) uint8 and scales (blocks, 1) → `out`, (blocks, block)."""

    def unpadded(self, spare: int) -> float:
        """What the scale of a block must be multiplied by if `spare` of its elements are zeros that were added."""
        return 1.0

    def size(self, elements: int) -> int:
        return -(-elements // self.block) * (4 + self.block * self.bits // 8)

    def encode(self, values: Tensor, payload: Tensor) -> None:
        spare = -values.numel() % self.block
        scales, codes = self.quantize((pad(values, (0, spare)) if spare else values).view(-1, self.block))
        if spare:
            scales[-1] *= self.unpadded(spare)
        payload[: 4 * len(scales)].view(torch.float32).copy_(scales.view(-1))
        payload[4 * len(scales) :].copy_(codes.view(-1).view(torch.uint8))

    def decode(self, payload: Tensor, out: Tensor) -> None:
        count = -(-out.numel() // self.block)
        scales = payload[: 4 * count].view(torch.float32).view(count, 1)
        codes = payload[4 * count :].view(count, self.block * self.bits // 8)
        if out.numel() == count * self.block:
            self.dequantize(codes, scales, out.view(count, self.block))
        else:
            blocks = torch.empty(count, self.block, device=out.device)
            self.dequantize(codes, scales, blocks)
            out.copy_(blocks.view(-1)[: out.numel()])


def largest(blocks: Tensor) -> Tensor:
    """Largest magnitude of each block, (blocks, 1), at least the smallest normal number so that it divides."""
    # aminmax would say both at once, twenty times as slowly
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    return torch.maximum(-low, high).clamp_(min=torch.finfo(torch.float32).tiny)
