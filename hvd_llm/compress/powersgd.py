"""powersgd: every matrix as a product of two thin ones (Vogels et al. 2019, arXiv:1905.13727), algorithm 1 and 2.

M is approximated by P Q^T: one step of the power method, whose start Q is the last step's. Both factors are plain
sums, so their size does not depend on the number of ranks. Error feedback is algorithm 2. Only what P's columns span
is used, so float16 is enough for it; whatever Q misses then is fed back. So P is to be the longer one: of matrices that
are wider than tall, M is the transpose.

Shapes: K matrices of one shape in a bucket, M rows, N columns (M >= N), R rank.
"""

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

    q_KNR = state.get("q")
    if q_KNR is None or q_KNR.shape != (count, columns, rank):  # the first step, or a checkpoint of another rank
        p_KMR = thin(tall_KMN, _start(at, tall_KMN, rank))
    else:
        p_KMR = _halves(thin(tall_KMN, _unit(_alive(q_KNR, at, tall_KMN))), at.size)
    p_KMR = orthonormal((yield Sum(p_KMR)).to(gradient.dtype))
    q_KNR = thin(tall_KMN.mT, p_KMR)
    if at.feedback:
        gradient.baddbmm_(*factors(q_KNR), alpha=-1)
    q_KNR = yield Sum(q_KNR)
    state["q"] = q_KNR
    return torch.bmm(*factors(q_KNR), out=at.result(gradient))


def _start(at, like: Tensor, rank: int) -> Tensor:
    """The same random directions on every rank."""
    shape = (like.shape[0], like.shape[2], rank)
    return torch.randn(shape, generator=at.generator(like.device, everyone=True), device=like.device, dtype=like.dtype)


def _alive(q_KNR: Tensor, at, like_KMN: Tensor) -> Tensor:
    """Columns that are zero, as of a gradient that was, start afresh: the power method would never leave zero."""
    dead_K1R = (q_KNR == 0).all(1, keepdim=True)
    return torch.where(dead_K1R, _start(at, like_KMN, q_KNR.shape[-1]), q_KNR) if dead_K1R.any() else q_KNR


def _unit(q_KNR: Tensor) -> Tensor:
    """Each column divided by its squared length: P's columns are about 1 long then, while gradients keep their size."""
    return q_KNR / q_KNR.square().sum(1, keepdim=True).clamp_min(torch.finfo(q_KNR.dtype).tiny)


def _halves(p_KMR: Tensor, ranks: int) -> Tensor:
    """In float16, so that the sum is finite too: a column of Q that was but rounding says nothing of P's size."""
    most = torch.finfo(torch.float16).max / ranks
    return p_KMR.clamp(-most, most).half()


def thin(a_KMN: Tensor, b_KNR: Tensor) -> Tensor:
    """(K, M, R), their product, R being small: in the other order MKL takes two to four times as long."""
    if a_KMN.stride(-1) == 1:
        return a_KMN @ b_KNR
    return (b_KNR.mT @ a_KMN.mT).mT.contiguous()


def orthonormal(p_KMR: Tensor) -> Tensor:
    """Columns of the same span, each of length 1 and at right angles to the others; all matrices at once."""
    return torch.linalg.qr(p_KMR).Q
