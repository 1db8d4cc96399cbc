"""Blocks of numbers that share one float32 scale: what int8, fp8, int4, twobit and onebit have in common.

A payload is every block's scale, then every block's codes. Time goes by the number of passes over memory, so results
are written where they belong at once, and decoding onto something scales and adds in one.
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
    def quantize(self, blocks: Tensor, scales: Tensor, codes: Tensor) -> None:
        """`blocks`, (count, block) float32 → `scales`, (count, 1) float32, and `codes`, (bytes,) uint8."""

    @abstractmethod
    def levels(self, codes: Tensor, out: Tensor) -> Tensor:
        """`codes`, (bytes,) uint8 → `out`, (count, block) float32: what is to be multiplied by the scales."""

    def size(self, elements: int) -> int:
        return -(-elements // self.block) * (4 + self.block * self.bits // 8)

    def encode(self, values: Tensor, payload: Tensor) -> None:
        short = values.numel() % self.block
        if short:  # the last block is filled up with its mean magnitude: that, and its largest, stay what they are
            magnitudes = values[-short:].abs()
            filling = torch.minimum(magnitudes.mean(), magnitudes.max())
            values = torch.cat([values, filling.expand(self.block - short)])
        self.quantize(*self._parts(values, payload))

    def decode(self, payload: Tensor, out: Tensor) -> None:
        blocks, scales, codes = self._parts(out, payload)
        self.levels(codes, blocks).mul_(scales)
        self._store(blocks, out)

    def add(self, payload: Tensor, out: Tensor, times: float = 1) -> None:
        blocks, scales, codes = self._parts(out, payload)
        blocks.addcmul_(self.levels(codes, torch.empty_like(blocks)), scales, value=times)
        self._store(blocks, out)

    def _parts(self, values: Tensor, payload: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(count, block) numbers, a view unless the last block is short, and views of scales and codes."""
        spare = -values.numel() % self.block
        blocks = (pad(values, (0, spare)) if spare else values).view(-1, self.block)
        scales, codes = payload.split([4 * len(blocks), payload.numel() - 4 * len(blocks)])
        return blocks, scales.view(torch.float32).view(-1, 1), codes

    def _store(self, blocks: Tensor, out: Tensor) -> None:
        if blocks.numel() > out.numel():
            out.copy_(blocks.view(-1)[: out.numel()])


def largest(blocks: Tensor) -> Tensor:
    """Largest magnitude of each block, (count, 1), at least the smallest normal number so that it divides."""
    # aminmax would say both at once, twenty times as slowly
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    return torch.maximum(low.neg_(), high).clamp_(min=torch.finfo(torch.float32).tiny)


def rounded(blocks: Tensor, scales: Tensor) -> Tensor:
    """`blocks` / `scales` rounded to nearest: int32 whose lowest byte is the integer, from -128 to 127."""
    # From 2^23 to 2^24 floats have no bits for a fraction, so that adding rounds; half of that is for negative numbers.
    centre = torch.full_like(blocks[:1], 1.5 * 2**23)
    return torch.addcdiv(centre, blocks, scales).view(torch.int32)
