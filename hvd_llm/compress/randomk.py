"""randomk: random blocks of elements, the same on all ranks, with error feedback.

Ranks draw them from the seed, so no index is sent and the sum is an ordinary one.
"""

import torch

from hvd_llm.compress.base import Sum, compressor
from hvd_llm.errors import UserError

BLOCK = 64


@compressor(feedback=1)
def randomk(gradient, state, at, share: float = 1 / 64):
    """random blocks of 64 elements, a `share` of all, with error feedback: 64x smaller"""
    if not 0 < share <= 1:
        raise UserError(f"share is {share}; it must be more than 0 and at most 1")
    count = -(-gradient.numel() // BLOCK)
    chosen = torch.randperm(count, generator=at.generator(torch.device("cpu"), everyone=True))
    chosen = chosen[: max(1, round(count * share))].to(gradient.device)
    places = (chosen[:, None] * BLOCK + torch.arange(BLOCK, device=gradient.device)).view(-1)
    places = places[places < gradient.numel()]
    values = gradient[places]
    gradient[places] = 0
    values = yield Sum(values)
    return torch.zeros_like(gradient).index_copy_(0, places, values)
