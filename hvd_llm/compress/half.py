"""fp16 and bf16: half the bytes.

The gradients that come here are already divided by the number of targets of a full batch, so their sum is in the range
of a mean. It is taken in float32. fp16 has few exponents: every chunk is first multiplied by the power of two that
brings its largest element just below 2^15, so that small gradients keep their bits and none overflows.
"""

import torch
from torch import Tensor

from hvd_llm.compress.base import compressor
from hvd_llm.compress.two_phase import two_phase


class Fp16:
    block = 1024

    def size(self, elements: int) -> int:
        return 4 + 2 * (elements + elements % 2)

    def encode(self, values: Tensor, payload: Tensor) -> None:
        scale, halves = self._parts(values, payload)
        _, exponent = torch.frexp(torch.maximum(values.amin().neg_(), values.amax()))
        # An inf has no exponent; whatever the scale, it stays one.
        torch.exp2(exponent.clamp_(-100, 128).sub_(15), out=scale)
        torch.mul(values, 1 / scale, out=halves)

    def decode(self, payload: Tensor, out: Tensor) -> None:
        scale, halves = self._parts(out, payload)
        out.copy_(halves).mul_(scale)

    def add(self, payload: Tensor, out: Tensor, times: float = 1) -> None:
        scale, halves = self._parts(out, payload)
        out.addcmul_(halves.float(), scale, value=times)

    def _parts(self, values: Tensor, payload: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the scale, by which the halves are to be multiplied, and of the halves."""
        return payload[:4].view(torch.float32).view(()), payload[4:].view(torch.float16)[: values.numel()]


class Bf16:
    block = 1024

    def size(self, elements: int) -> int:
        return 2 * (elements + elements % 2)

    def encode(self, values: Tensor, payload: Tensor) -> None:
        payload.view(torch.bfloat16)[: values.numel()].copy_(values)

    def decode(self, payload: Tensor, out: Tensor) -> None:
        out.copy_(payload.view(torch.bfloat16)[: out.numel()])

    def add(self, payload: Tensor, out: Tensor, times: float = 1) -> None:
        out.add_(payload.view(torch.bfloat16)[: out.numel()], alpha=times)


@compressor(feedback=0)
def fp16(gradient, state, at):
    """half precision, scaled to its range, summed in float32: 2x smaller"""
    return (yield from two_phase(gradient, at, Fp16()))


@compressor(feedback=0)
def bf16(gradient, state, at):
    """bfloat16, summed in float32: 2x smaller"""
    return (yield from two_phase(gradient, at, Bf16()))
