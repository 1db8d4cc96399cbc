"""powersgd: every matrix as a product of two thin ones (Vogels et al. 2019, arXiv:1905.13727), algorithm 1 and 2.

M is approximated by P Q^T: one step of the power method, whose start Q is the last step's. Both factors are plain
sums, so their size does not depend on the number of ranks. Error feedback is algorithm 2. Only what P's columns span
is used, so float16 is enough for it; whatever Q misses then is fed back. So P is to be the longer one: of matrices that
are wider than tall, M is the transpose.

Shapes: K matrices of one shape in a bucket, M rows, N columns (M >= N), R rank.
"""

import math

import torch
from torch import Tensor

from hvd_llm.compress.base import Sum, compressor
from hvd_llm.errors import UserError


@compressor(feedback=1, takes="matrices", same=("q",))
def powersgd(gradient, state, at, rank: int = 4):
    """matrices as products of two thin ones, with error feedback: 77x smaller for 768 x 256"""
    if rank < 1:
        raise UserError(f"rank is {rank}; it must be at least 1")
    wide = gradient.shape[1] < gradient.shape[2]
    tall_KMN = gradient.mT if wide else gradient
    count, rows, columns = tall_KMN.shape
    if rank * (rows + columns) >= rows * columns:  # nothing to gain
        total = yield Sum(gradient.clone())
        gradient.zero_()
        return total

    def factors(q_KNR: Tensor) -> tuple[Tensor, Tensor]:
        """Of a product that is shaped like the gradient."""
        return (q_KNR, p_KMR.mT) if wide else (p_KMR, q_KNR.mT)

    before_KNR = state.get("q")
    if before_KNR is None or before_KNR.shape != (count, columns, rank):  # the first step, or of other options or code
        before_KNR = torch.zeros(count, columns, rank, device=gradient.device, dtype=gradient.dtype)
    dead_K1R = (before_KNR == 0).all(1, keepdim=True)  # as of a gradient that was zero: it would stay so
    if dead_K1R.any():
        p_KMR = thin(tall_KMN, torch.where(dead_K1R, _random(at, before_KNR), before_KNR))
    else:
        p_KMR = _halves(thin(tall_KMN, _unit(before_KNR)), at.size)
    p_KMR = orthonormal((yield Sum(p_KMR)).to(gradient.dtype))
    q_KNR = thin(tall_KMN.mT, p_KMR)
    if at.feedback:
        gradient.baddbmm_(*factors(q_KNR), alpha=-1)
    q_KNR = yield Sum(q_KNR)
    state["q"] = q_KNR
    return torch.bmm(*factors(q_KNR), out=at.result(gradient))


def _random(at, like: Tensor) -> Tensor:
    """The same random directions on every rank."""
    generator = at.generator(like.device, everyone=True)
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def _unit(q_KNR: Tensor) -> Tensor:
    """Each column divided by its squared length: P's columns are about 1 long then, while gradients keep their size."""
    return q_KNR / q_KNR.square().sum(1, keepdim=True).clamp_min(torch.finfo(q_KNR.dtype).tiny)


def _halves(p_KMR: Tensor, ranks: int) -> Tensor:
    """In float16, so that the sum is finite too: a column of Q that was but rounding says nothing of P's size."""
    most = 2.0 ** math.floor(math.log2(torch.finfo(torch.float16).max / ranks))  # which rounding leaves as it is
    return p_KMR.clamp(-most, most).half()


def thin(a_KMN: Tensor, b_KNR: Tensor) -> Tensor:
    """(K, M, R), their product, R being 4 or so: in the other order MKL takes up to four times as long."""
    if a_KMN.stride(-1) == 1:
        return a_KMN @ b_KNR
    return (b_KNR.mT @ a_KMN.mT).mT.contiguous()


def orthonormal(p_KMR: Tensor) -> Tensor:
    """Columns of the same span, each of length 1 and at right angles to the others; all matrices at once.

    Every rank computes it for itself, so on one thread: LAPACK rounds otherwise on another number of them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return torch.linalg.qr(p_KMR).Q
    finally:
        torch.set_num_threads(threads)
