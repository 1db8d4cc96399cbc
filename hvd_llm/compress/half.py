"""fp16 and bf16: half the bytes.

The gradients that come here are already divided by the number of targets of a full batch, so their sum is in the range
of a mean. It is taken in float32. fp16 has few exponents: every slice is first multiplied by the power of two that
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

    def encode(self, values: Tensor) -> Tensor:
        payload = torch.zeros(self.size(values.numel()), dtype=torch.uint8, device=values.device)
        if values.numel():
            _, exponent = torch.frexp(torch.maximum(-values.amin(), values.amax()))
            scale = torch.ldexp(torch.ones((), device=values.device), 15 - exponent.clamp(-100, 100))
            # An inf has no exponent; whatever the scale, it stays one.
            payload[:4].view(torch.float32).copy_(scale)
            payload[4 : 4 + 2 * values.numel()].view(torch.float16).copy_(values * scale)
        return payload

    def decode(self, payload: Tensor, out: Tensor) -> Tensor:
        out.copy_(payload[4 : 4 + 2 * out.numel()].view(torch.float16))
        return out.div_(payload[:4].view(torch.float32))


class Bf16:
    block = 1024

    def size(self, elements: int) -> int:
        return 2 * (elements + elements % 2)

    def encode(self, values: Tensor) -> Tensor:
        payload = torch.zeros(self.size(values.numel()), dtype=torch.uint8, device=values.device)
        payload[: 2 * values.numel()].view(torch.bfloat16).copy_(values)
        return payload

    def decode(self, payload: Tensor, out: Tensor) -> Tensor:
        return out.copy_(payload[: 2 * out.numel()].view(torch.bfloat16))


@compressor(feedback=0)
def fp16(gradient, state, at):
    """half precision, scaled to its range, summed in float32: 2x smaller"""
    return (yield from two_phase(gradient, at, Fp16()))


@compressor(feedback=0)
def bf16(gradient, state, at):
    """bfloat16, summed in float32: 2x smaller"""
    return (yield from two_phase(gradient, at, Bf16()))
