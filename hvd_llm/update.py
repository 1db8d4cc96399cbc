"""From summed gradients to new weights: the division by the number of targets, clipping, the optimizer's step."""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor

from hvd_llm import optimizer
from hvd_llm.config import Optimizer
from hvd_llm.reduce.buckets import Bucket
from hvd_llm.reduce.reducer import Reducer
from hvd_llm.state import State
from hvd_llm.trace import Trace


class Update:
    """All weights at once, when all gradients are there."""

    def __init__(self, config: Optimizer, state: State, reducer: Reducer, steps: int, trace: Trace):
        self.config, self.state, self.reducer, self.steps, self.trace = config, state, reducer, steps, trace

    @torch.no_grad()
    def take(self, factor: float, exact: bool) -> dict:
        """Multiply the summed gradients by `factor`, clip them, take the optimizer's step; returns a row of metrics.

        `exact` says whether they were sent as they are.
        A gradient that is not finite is so on every rank, because it was summed; all skip this step.
        """
        with self.trace.span("optimizer"):
            lr, buckets = self._learning_rate(), self.reducer.buckets
            norm = _norm([torch.linalg.vector_norm(bucket.flat) for bucket in buckets]) * factor
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
        """Return when every update that was begun is taken: here, they all are."""

    def end(self) -> None:
        """Training ends: take up what is still under way."""

    def agreeing(self) -> AbstractContextManager:
        """The model has the weights that are equal on all ranks, meanwhile: here, always."""
        return nullcontext()

    def _learning_rate(self, later: int = 0) -> float:
        return optimizer.learning_rate(self.config, self.state.progress.step + later, self.steps)

    def _clip(self, norm: float | None) -> float:
        """What gradients are multiplied by for clipping, if this step's norm is `norm`."""
        norm = norm if self.config.clip_by == "this" else self.state.progress.norm
        return min(1.0, self.config.clip_norm / norm) if self.config.clip_norm and norm else 1.0

    def _apply(self, buckets: Iterable[Bucket], factor: float, lr: float, exact: bool) -> None:
        """Take the optimizer's step for those parameters that have a gradient: the buckets'."""
        for bucket in buckets:
            if factor != 1:
                bucket.flat.mul_(factor)
        for group in self.state.optimizer.param_groups:
            group |= {"lr": lr, "exact": exact}
        self.state.optimizer.step()


class LateUpdate(Update):
    """Each bucket's weights when its sum is in, while the next forward pass is on its way: `reduce.overlap = forward`.

    A layer's forward waits for its own weights. They are bit for bit those of `Update`: whether the step is skipped is
    agreed before the first of them changes, and clipping can only go by the norm of the step before. (Not so for
    gradients that are finite on every rank but so large that their sum is not: then both skip, or this one alone.)
    """

    def __init__(self, *args):
        super().__init__(*args)
        self._waiting: dict[int, Bucket] = {}
        self._decided = False
        self._factor, self._lr, self._exact = 1.0, 0.0, True
        self._norms: dict[int, Tensor] = {}
        self._device = self.reducer.buckets[0].flat.device
        home = {id(self.reducer.parameters[name]): b.index for b in self.reducer.buckets for name in b.views}
        for module in self.state.model.modules():
            needs = {home[id(parameter)] for parameter in module.parameters(recurse=False) if id(parameter) in home}
            if needs:
                module.register_forward_pre_hook(partial(self._before, needs))

    def take(self, factor, exact):
        """As in `Update`, but only begin; the row has the norm of the step before."""
        self._waiting = {bucket.index: bucket for bucket in self.reducer.buckets}
        self._decided, self._factor, self._lr, self._exact = False, factor, self._learning_rate(), exact
        for parameter in self.reducer.parameters.values():
            parameter.grad = None
        progress = self.state.progress
        return {"learning_rate": self._lr, "gradient_norm": progress.norm, "skipped": progress.skipped}

    def settle(self):
        self._settle(list(self._waiting.values()))

    def _before(self, needs: set[int], *_) -> None:
        """A module is going to use the weights of the buckets `needs`."""
        if not self._waiting:
            return
        with torch.autocast(self._device.type, enabled=False):  # it is forward's, and not for compressors
            self.reducer.advance()
            self._settle([self._waiting[index] for index in sorted(needs & self._waiting.keys())])

    @torch.no_grad()
    def _settle(self, buckets: Sequence[Bucket]) -> None:
        if not buckets or not self._decide():
            return
        with self._span("exposed"):
            buckets = self.reducer.land(buckets)
        with self._span("optimizer"):
            for bucket in buckets:
                self._norms[bucket.index] = torch.linalg.vector_norm(bucket.flat)
                for name, view in bucket.views.items():
                    self.reducer.parameters[name].grad = view
            self._apply(buckets, self._factor * self._clip(None), self._lr, self._exact)
            for bucket in buckets:
                self.reducer.memory.keep(bucket.index)
                for name in bucket.views:
                    self.reducer.parameters[name].grad = None
                del self._waiting[bucket.index]
            if not self._waiting:
                norms = [self._norms[bucket.index] for bucket in self.reducer.buckets]
                self.state.progress.norm = _norm(norms) * self._factor

    def _span(self, kind: str):
        """A part of the step; between steps, it is part of what needs the weights: an evaluation, a checkpoint."""
        return self.trace.span(kind) if self.trace.inside else nullcontext()

    def _decide(self) -> bool:
        """Whether the step that waits is taken. One that is not changes nothing, once everything has landed."""
        if self._decided:
            return True
        with self._span("exposed"):
            finite = self.reducer.finite()
            if not finite:
                self.reducer.land(self.reducer.buckets)
        if not finite:
            self.state.progress.skipped += 1
            self.reducer.memory.drop()
            self._waiting.clear()
        self._decided = True
        return finite


class DelayedUpdate(Update):
    """All weights at once, by the sum of the step before: `reduce.delay = 1`.

    A gradient that is one step old is not what momentum bears: on a quadratic, at 0.9, the steepest curvature at which
    training is stable falls from 38 / lr to 0.5 / lr. So each rank goes ahead by its own gradient, as if all ranks had
    the same, and takes its next gradient there. When the sum is in, it goes back and takes the step that all take; what
    is old is only what the others' gradients add to its own. (As the first half of a batch is in ACCO: Nabli et al.
    2024, arXiv:2406.02613, section 3.)

    Attributes:
        agreed: the weights that are equal on all ranks, by parameter; empty while the model has them.
    """

    def __init__(self, *args):
        super().__init__(*args)
        self.agreed = {name: slots["anchor"].clone() for name, slots in self.state.shared.items()}
        for module in self.state.model.modules():
            if next(module.parameters(recurse=False), None) is not None:
                module.register_forward_pre_hook(self._before)

    def take(self, factor, exact):
        """As in `Update`, but `factor` and `exact` are for the next step. The first changes nothing."""
        progress = self.state.progress
        row = {"learning_rate": self._learning_rate(), "gradient_norm": None, "skipped": progress.skipped}
        with self.trace.span("optimizer"):
            self._go_back()
        if progress.under_way:
            row = super().take(*progress.under_way)
        with self.trace.span("optimizer"):
            self._go_ahead(factor, exact)
        self.reducer.depart()
        progress.under_way = [factor, exact]
        return row

    def end(self):
        progress = self.state.progress
        if progress.under_way:
            self.reducer.take_up()
            self._go_back()
            super().take(*progress.under_way)
            progress.under_way = []

    @torch.no_grad()
    def _go_ahead(self, factor: float, exact: bool) -> None:
        self.agreed = {name: parameter.clone() for name, parameter in self.state.parameters.items()}
        gathered = self.reducer.gathered(factor * self._clip(self.state.progress.norm))
        if gathered:
            for group in self.state.optimizer.param_groups:
                group |= {"lr": self._learning_rate(1), "exact": exact}
            parameters = self.state.parameters
            optimizer.step_ahead(self.state.optimizer, {parameters[name]: g for name, g in gathered.items()})

    @torch.no_grad()
    def _go_back(self) -> None:
        for name, weights in self.agreed.items():
            self.state.parameters[name].copy_(weights)
        self.agreed = {}

    @contextmanager
    def agreeing(self):
        agreed, ahead = self.agreed, {name: self.state.parameters[name].detach().clone() for name in self.agreed}
        self._go_back()
        try:
            yield
        finally:
            self.agreed = ahead
            self._go_back()
            self.agreed = agreed

    @torch.no_grad()
    def _before(self, *_) -> None:
        """A module is at work: compressors of several rounds must not wait for backward."""
        if torch.is_inference_mode_enabled():  # what is made there cannot be used in training
            return
        with torch.autocast(self.reducer.buckets[0].flat.device.type, enabled=False):
            self.reducer.advance()


def _norm(norms: Sequence[Tensor]) -> float:
    """The L2 norm of everything, from that of each part; the same bits on all ranks."""
    return float(torch.linalg.vector_norm(torch.stack(list(norms))))
