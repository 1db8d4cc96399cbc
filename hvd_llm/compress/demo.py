"""demo: the strongest frequencies of the momentum (Peng et al. 2024, "DeMo", arXiv:2411.19870), algorithm 1.

Momentum stays on its rank; what is sent is taken out of it. The choice is made after a discrete cosine transform of
every chunk, 64 x 64: few coefficients say what many elements have in common. DeMo then takes the sign of the sum, which
is its optimizer's affair.
"""

import math

import torch
from torch import Tensor

from hvd_llm.compress.base import compressor
from hvd_llm.compress.topk import chunks, exchange

SIDE = 64


def cosines(like: Tensor) -> Tensor:
    """The orthonormal DCT-II, (SIDE, SIDE): coefficients = D @ x."""
    n = torch.arange(SIDE, dtype=torch.float64)
    basis = torch.cos(math.pi / SIDE * (n + 0.5) * n[:, None]) * math.sqrt(2 / SIDE)
    basis[0] /= math.sqrt(2)
    return basis.to(like)


@compressor(feedback=0.999)
def demo(gradient, state, at, keep: int = 32):
    """the `keep` largest of every 64 x 64 cosine coefficients of decaying momentum (DeMo): 146x smaller for 2 ranks"""
    dct = cosines(gradient)
    coefficients = (dct @ chunks(gradient).view(-1, SIDE, SIDE) @ dct.T).view(-1, SIDE * SIDE)
    before = coefficients.clone()
    total = yield from exchange(coefficients, keep)
    gradient.sub_(_inverse(before - coefficients, dct, gradient.numel()))
    return _inverse(total, dct, gradient.numel())


def _inverse(coefficients: Tensor, dct: Tensor, elements: int) -> Tensor:
    return (dct.T @ coefficients.view(-1, SIDE, SIDE) @ dct).view(-1)[:elements]
