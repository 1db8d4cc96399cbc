"""Gradients whose sums are taken up one step later, so that a whole step hides their exchange: `reduce.delay = 1`.

Pipe-SGD (Li et al. 2018, arXiv:1811.03619) with a pipeline of two; the delayed parameter update of ZeRO-Offload (Ren
et al. 2021, arXiv:2101.06840, section 5.2) hides a slow optimizer in the same way. What it does to the weights is in
`update.DelayedUpdate`.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hvd_llm.reduce.buckets import allocate, total_norm
from hvd_llm.reduce.memory import Named
from hvd_llm.reduce.policy import Planned
from hvd_llm.reduce.reducer import Reducer, home
from hvd_llm.reduce.sender import Route


class Delayed(Reducer):
    """A `Reducer` with two sets of buckets: in one gradients gather while the other is on its way.

    `finish()` leaves in every `p.grad` the sum of the step before. When that has been used and what the compressors
    remember of it is kept or dropped, `depart()` sends this step's, and leaves this rank's own in its place.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        plan: Sequence[Planned],
        route: Route,
        kept: Named | None = None,
        arriving: Mapping[str, Tensor] | None = None,
    ):
        """
        Args:
            arriving: what `arriving` gave an earlier run.
        """
        super().__init__(parameters, plan, route, kept, overlap="none", meanwhile=self.advance)
        self._size = route.comm.size
        self._away = allocate(parameters, plan, route.comm.allocate)
        for name, (_, view) in home(self._away).items() if arriving else ():
            view.copy_(arriving[name])

    def finish(self) -> None:
        """Wait for what is under way; it is in every `p.grad` then, and what has gathered there is laid by."""
        with self._trace.span("exposed"):
            for bucket in self.buckets:
                self._fill(bucket)
            self._sender.finish(self._away)
        self.buckets, self._away = self._away, self.buckets
        self._home = home(self.buckets)
        for name, (_, view) in self._home.items():
            self.parameters[name].grad = view

    @torch.no_grad()
    def depart(self) -> None:
        """Send what has gathered in this step; leave in every `p.grad` its sum, had all ranks gathered the same."""
        with self._trace.span("exposed"):
            for bucket, away in zip(self.buckets, self._away, strict=True):
                torch.mul(away.flat, self._size, out=bucket.flat)
                self._send(away)

    def arriving(self) -> dict[str, Tensor]:
        """Wait for what is under way, and keep what compressors remember of it; parameter → its sum."""
        self._sender.finish(self._away)
        if math.isfinite(total_norm(self._away)):  # as the update will find it
            self.memory.keep()
        else:
            self.memory.drop()
        return {name: view for name, (_, view) in home(self._away).items()}
