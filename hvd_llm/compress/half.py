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
        _, exponent = torch.frexp(torch.maximum(-values.amin(), values.amax()))
        # An inf has no exponent; whatever the scale, it stays one.
        scale = torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), 15 - exponent.clamp(-100, 100))
        payload[:4].view(torch.float32).copy_(scale)
        payload[4:].view(torch.float16)[: values.numel()].copy_(values * scale)

    def decode(self, payload: Tensor, out: Tensor) -> None:
        out.copy_(payload[4:].view(torch.float16)[: out.numel()])
        out.div_(payload[:4].view(torch.float32))


class Bf16:
    block = 1024

    def size(self, elements: int) -> int:
        return 2 * (elements + elements % 2)

    def encode(self, values: Tensor, payload: Tensor) -> None:
        payload.view(torch.bfloat16)[: values.numel()].copy_(values)

    def decode(self, payload: Tensor, out: Tensor) -> None:
        out.copy_(payload.view(torch.bfloat16)[: out.numel()])


@compressor(feedback=0)
def fp16(gradient, state, at):
    """half precision, scaled to its range, summed in float32: 2x smaller"""
    return (yield from two_phase(gradient, at, Fp16()))


@compressor(feedback=0)
def bf16(gradient, state, at):
    """bfloat16, summed in float32: 2x smaller"""
    return (yield from two_phase(gradient, at, Bf16()))
