"""Error feedback: what was not sent in this step is added to the gradient of the next.

Seide et al. 2014 ("1-bit SGD"), Karimireddy et al. 2019 (arXiv:1901.09847), algorithm 2. The error is this
rank's own: what it gave less what it sent, not less what came back, which would let it grow with the square root
of time. It is kept in float32 whatever the gradient's type, by parameter, in units of the gradient itself.
"""

import dataclasses

import torch


def with_feedback(function, decay: float = 1.0):
    """Wrap a generator function that leaves in its gradient what it did not send.

    Args:
        decay: share of the error that is kept: 1, or less to forget what is old (DeMo, SparseLoCo).
    """

    def corrected(gradient, state, at, **options):
        if "error" in state:
            rest = torch.add(gradient, state["error"], alpha=decay).float()
        else:
            rest = gradient.to(torch.float32, copy=True)
        # All of the gradient is in `rest` now.
        total = yield from function(rest, state, dataclasses.replace(at, feedback=True, free=gradient), **options)
        state["error"] = rest
        return total

    return corrected
