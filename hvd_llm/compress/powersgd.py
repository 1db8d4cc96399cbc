"""powersgd: every matrix as a product of two thin ones (Vogels et al. 2019, arXiv:1905.13727), algorithm 1 and 2.

M is approximated by P Q^T: one step of the power method, whose start Q is the last step's. Both factors are plain
sums, so their size does not depend on the number of ranks. Error feedback is algorithm 2.

Shapes: K matrices of one shape in a bucket, M rows, N columns, R rank.
"""

import torch
from torch import Tensor

from hvd_llm.compress.base import Sum, compressor
from hvd_llm.errors import UserError


@compressor(feedback=1, takes="matrices", same=("q",))
def powersgd(gradient_KMN, state, at, rank: int = 4):
    """matrices as products of two thin ones, with error feedback: 48x smaller for 768 x 256"""
    if too_small(gradient_KMN, rank):
        total = yield Sum(gradient_KMN.clone())
        gradient_KMN.zero_()
        return total
    q_KNR = state.get("q")
    if q_KNR is None or q_KNR.shape[-1] != rank:  # the first step, or a checkpoint of another rank
        q_KNR = random_start(at, gradient_KMN, rank)
    p_KMR = orthonormal((yield Sum(thin(gradient_KMN, q_KNR))))
    q_KNR = thin(gradient_KMN.mT, p_KMR)
    if at.feedback:
        gradient_KMN.baddbmm_(p_KMR, q_KNR.mT, alpha=-1)
    q_KNR = yield Sum(q_KNR)
    state["q"] = q_KNR
    return p_KMR @ q_KNR.mT


def too_small(gradient_KMN: Tensor, rank: int) -> bool:
    """Whether factors of that rank are as large as the matrices.

    Raises:
        UserError: there is no such rank.
    """
    if rank < 1:
        raise UserError(f"rank is {rank}; it must be at least 1")
    rows, columns = gradient_KMN.shape[1:]
    return rank * (rows + columns) >= rows * columns


def random_start(at, like_KMN: Tensor, rank: int) -> Tensor:
    """(K, N, R), the same random directions on every rank."""
    shape = (like_KMN.shape[0], like_KMN.shape[2], rank)
    random = at.generator(like_KMN.device, everyone=True)
    return torch.randn(shape, generator=random, device=like_KMN.device, dtype=like_KMN.dtype)


def thin(a_KMN: Tensor, b_KNR: Tensor) -> Tensor:
    """(K, M, R), their product, R being small: MKL takes 3 to 10 times as long if the thin factor is the right one."""
    return (b_KNR.mT @ a_KMN.mT).mT.contiguous()


def orthonormal(p_KMR: Tensor) -> Tensor:
    """Columns of the same span, each of length 1 and at right angles to the others; all matrices at once."""
    return torch.linalg.qr(p_KMR).Q
