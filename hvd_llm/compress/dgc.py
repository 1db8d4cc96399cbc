"""dgc: topk of momentum that was accumulated on every rank (Lin et al. 2018, arXiv:1712.01887).

Momentum is applied before the choice (section 3.1, equation 4), so that what waits long to be sent has not lost its
momentum meanwhile; it is forgotten where it was sent (momentum factor masking, section 3.2). During the warm-up the
share that is sent falls from a quarter to `keep` / 4096 (section 3.3). Use an optimizer without momentum of its own.
"""

from hvd_llm.compress.base import compressor
from hvd_llm.compress.topk import CHUNK, check, chunks, exchange
from hvd_llm.errors import UserError


@compressor
def dgc(gradient, state, at, keep: int = 64, momentum: float = 0.9, warmup: int = 0):
    """topk with momentum correction and warm-up, for SGD: 73x smaller for 2 ranks"""
    if not 0 <= momentum < 1:
        raise UserError(f"momentum is {momentum}; it must be at least 0 and less than 1")
    check(keep)
    velocity, waiting = gradient.float(), gradient.float()
    if state:
        velocity = velocity.add(state["velocity"], alpha=momentum)
        waiting = state["error"] + velocity
    rows = chunks(waiting)
    before = rows.clone()
    total = yield from exchange(rows, _share(keep, at.step, warmup))
    elements = gradient.numel()
    sent = (rows != before).view(-1)[:elements]
    state["velocity"] = velocity.masked_fill(sent, 0)
    state["error"] = rows.view(-1)[:elements].clone()
    return total.view(-1)[:elements]


def _share(keep: int, step: int, warmup: int) -> int:
    """Elements of a chunk to send: from a quarter of them down to `keep`, exponentially; a multiple of 8."""
    if step >= warmup:
        return keep
    start = CHUNK // 4
    return 8 * round(start * (keep / start) ** (step / warmup) / 8)
