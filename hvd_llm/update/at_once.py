"""From summed gradients to new weights: the division by the number of targets, clipping, the optimizer's step."""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch

from hvd_llm import optimizer
from hvd_llm.config import Config
from hvd_llm.reduce.buckets import Bucket, total_norm
from hvd_llm.reduce.reducer import Reducer
from hvd_llm.reduce.sender import Route
from hvd_llm.routing import Plan
from hvd_llm.state import State


class Update:
    """All weights at once, when all gradients are there.

    Attributes:
        reducer: what sums the gradients for it.
        how: the optimizer's settings.
    """

    def __init__(self, config: Config, state: State, plan: Plan, route: Route):
        self.how, self.state, self.trace = config.optimizer, state, route.trace
        self.reducer = self._make_reducer(config, plan, route)

    def _make_reducer(self, config: Config, plan: Plan, route: Route) -> Reducer:
        return Reducer(
            self.state.parameters,
            plan.buckets,
            route,
            self.state.memory,
            overlap=config.reduce.overlap,
            lookups=plan.lookups,
            meanwhile=self.settle,
        )

    @property
    def unfinished(self) -> bool:
        """Whether there is something for `end` to do: here, never."""
        return False

    def begin(self, step: int) -> bool:
        """A step begins; whether this rank takes it alone, by its own gradients: here, never."""
        return False

    @torch.no_grad()
    def take(self, factor: float, exact: bool, lr: float) -> dict:
        """Multiply the summed gradients by `factor`, clip them, take the optimizer's step; returns a row of metrics.

        `exact` says whether they were sent as they are.
        A gradient that is not finite is so on every rank, because it was summed; all skip this step.
        """
        with self.trace.span("optimizer"):
            buckets = self.reducer.buckets
            norm = total_norm(buckets) * factor
            if math.isfinite(norm):
                self._apply(buckets, factor * self._clip(norm), lr, exact)
                self.reducer.memory.keep()
                self.state.progress.norm = norm
            else:
                self.state.progress.skipped += 1
                self.reducer.memory.drop()
            self.state.loss_scale.update(math.isfinite(norm))
        return {"learning_rate": lr, "gradient_norm": norm, "skipped": self.state.progress.skipped}

    def settle(self) -> None:
        """Return when every update that was begun is taken, but for one that is a step late: here, they all are."""

    def end(self) -> None:
        """Training ends: what is still under way is taken up, what ranks have learnt apart comes together."""

    def agreeing(self) -> AbstractContextManager:
        """The model has the weights that are equal on all ranks, meanwhile: here, always."""
        return nullcontext()

    def remember(self) -> None:
        """Bring `state` up to date with what is kept, or still under way, here and in the reducer."""
        self.settle()
        self.state.remember(self.reducer.memory.by_parameter())

    def _clip(self, norm: float | None) -> float:
        """What gradients are multiplied by for clipping, if this step's norm is `norm`."""
        norm = norm if self.how.clip_by == "this" else self.state.progress.norm
        return min(1.0, self.how.clip_norm / norm) if self.how.clip_norm and norm else 1.0

    def _apply(self, buckets: Iterable[Bucket], factor: float, lr: float, exact: bool) -> None:
        """Take the optimizer's step for those parameters that have a gradient: the buckets'."""
        for group in self.state.optimizer.param_groups:
            group |= {"lr": lr, "exact": exact}
        optimizer.take_step(self.state.optimizer, [bucket.flat for bucket in buckets], factor)
