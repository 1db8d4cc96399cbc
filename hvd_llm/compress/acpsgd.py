"""acpsgd: powersgd with one factor a step (Zhang et al. 2023, arXiv:2306.08881).

The power method takes half a step: M is projected on the columns that the last step found, and the next step projects
on the rows that this one finds. So a step has one round, half the bytes, one product and one orthogonalisation, at
equal rank; twice the rank costs what powersgd does. What a step leaves out is fed back.

Shapes: K matrices of one shape in a bucket, M rows, N columns, R rank.
"""

from hvd_llm.compress.base import Sum, compressor
from hvd_llm.compress.powersgd import orthonormal, random_start, thin, too_small


@compressor(feedback=1, takes="matrices", same=("p", "q"))
def acpsgd(gradient_KMN, state, at, rank: int = 8):
    """powersgd that sends one of both factors in each step, in turns: 48x smaller for 768 x 256"""
    if too_small(gradient_KMN, rank):
        total = yield Sum(gradient_KMN.clone())
        gradient_KMN.zero_()
        return total
    have, next_one = ("p", "q") if "p" in state else ("q", "p")
    m_KAB = gradient_KMN.mT if have == "p" else gradient_KMN  # A x R goes out, B x R is known
    known_KBR = state.pop(have, None)
    if known_KBR is None or known_KBR.shape[-1] != rank:  # the first step, or a checkpoint of another rank
        known_KBR = random_start(at, m_KAB, rank)
    known_KBR = orthonormal(known_KBR)
    factor_KAR = thin(m_KAB, known_KBR)
    if at.feedback:
        m_KAB.baddbmm_(factor_KAR, known_KBR.mT, alpha=-1)
    state[next_one] = yield Sum(factor_KAR)
    total_KAB = state[next_one] @ known_KBR.mT
    return total_KAB.mT if have == "p" else total_KAB
