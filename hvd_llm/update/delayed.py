"""Weights change by gradients that are a step old, while each rank goes ahead by its own."""

import math
from collections.abc import Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from hvd_llm import optimizer
from hvd_llm.reduce.buckets import total_norm
from hvd_llm.reduce.delayed import Delayed
from hvd_llm.update.at_once import Update


class DelayedUpdate(Update):
    """All weights at once, by the sum of the step before: `reduce.delay = 1`.

    A gradient that is one step old is not what momentum bears: on a quadratic, with the mean of gradients that Adam
    keeps at 0.9, the steepest curvature at which training is stable falls from 38 / lr to 1 / lr. So each rank goes
    ahead by its own gradient, as if all ranks had the same, and takes its next gradient there. When the sum is in, it
    goes back and takes the step that all take; what is old is only what the others' gradients add to its own. (As the
    first half of a batch is in ACCO: Nabli et al. 2024, arXiv:2406.02613, section 3.)

    Attributes:
        agreed: the weights that are equal on all ranks, by parameter; empty while nothing is under way.
    """

    reducer: Delayed

    def __init__(self, *args):
        super().__init__(*args)
        self.state.part()
        parameters = self.state.parameters
        self.agreed = {
            name: slots["anchor"].to(parameters[name], copy=True) for name, slots in self.state.shared.items()
        }
        for module in self.state.model.modules():
            if next(module.parameters(recurse=False), None) is not None:
                module.register_forward_pre_hook(self._before)

    def _make_reducer(self, config, plan, route):
        arriving = {name: slots["arriving"] for name, slots in self.state.shared.items()}
        return Delayed(self.state.parameters, plan.buckets, route, self.state.memory, arriving)

    @property
    def unfinished(self):
        return bool(self.state.progress.under_way)

    def take(self, factor, exact, lr):
        """As in `Update`, of the step before; of this step, only go ahead. The row has the norm of the step before."""
        self._catch_up()
        self.reducer.depart()
        with self.trace.span("optimizer"):
            self._go_ahead(factor, exact, lr)
        progress = self.state.progress
        progress.under_way = [factor, exact, lr]
        return {"learning_rate": lr, "gradient_norm": progress.norm, "skipped": progress.skipped}

    def end(self):
        if self.unfinished:
            self.reducer.finish()
            self._catch_up()

    def _catch_up(self) -> None:
        """Where all ranks are, take the step that was under way."""
        progress = self.state.progress
        if progress.under_way:
            self._use(self.agreed)
            super().take(*progress.under_way)
            self.agreed, progress.under_way = {}, []

    @torch.no_grad()
    def _go_ahead(self, factor: float, exact: bool, lr: float) -> None:
        """As all would by the gradients in `p.grad`; the optimizer forgets it."""
        self.agreed = self._use({name: parameter.clone() for name, parameter in self.state.parameters.items()})
        buckets = self.reducer.buckets
        norm = total_norm(buckets) * factor
        if math.isfinite(norm):
            with optimizer.forgetful(self.state.optimizer):
                self._apply(buckets, factor * self._clip(norm), lr, exact)

    @contextmanager
    def agreeing(self):
        ahead = self._use(self.agreed)
        try:
            yield
        finally:
            self._use(ahead)

    def remember(self):
        if not self.state.progress.under_way:
            super().remember()
            return
        arriving = self.reducer.arriving()
        shared = {name: {"anchor": self.agreed[name], "arriving": value} for name, value in arriving.items()}
        self.state.remember(self.reducer.memory.by_parameter(), shared, self.state.own_weights())

    def _use(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Exchange the model's weights for others, without copying any; returns what they were.

        From then on these others are the model's memory: its next step changes them.
        """
        parameters = {name: self.state.parameters[name] for name in weights}
        were = {name: parameter.data for name, parameter in parameters.items()}
        for name, parameter in parameters.items():
            parameter.data = weights[name]
        return were

    @torch.no_grad()
    def _before(self, *_) -> None:
        """A module is at work: compressors of several rounds must not wait for backward."""
        if not self.state.progress.under_way or torch.is_inference_mode_enabled():
            return  # what is made in inference mode cannot be used in training
        with torch.autocast(self.reducer.buckets[0].flat.device.type, enabled=False):
            self.reducer.advance()
