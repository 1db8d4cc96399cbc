"""From summed gradients to new weights: the division by the number of targets, clipping, the optimizer's step."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor

from hvd_llm import optimizer
from hvd_llm.config import Optimizer
from hvd_llm.reduce.buckets import Bucket, total_norm
from hvd_llm.reduce.reducer import Reducer
from hvd_llm.state import State
from hvd_llm.trace import Trace


class Update:
    """All weights at once, when all gradients are there."""

    def __init__(self, config: Optimizer, state: State, reducer: Reducer, trace: Trace):
        self.config, self.state, self.reducer, self.trace = config, state, reducer, trace

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
        """Return when every update that was begun is taken: here, they all are."""

    def end(self) -> None:
        """Training ends: take up what is still under way."""

    def agreeing(self) -> AbstractContextManager:
        """The model has the weights that are equal on all ranks, meanwhile: here, always."""
        return nullcontext()

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

    def take(self, factor, exact, lr):
        """As in `Update`, but only begin; the row has the norm of the step before."""
        self._waiting = {bucket.index: bucket for bucket in self.reducer.buckets}
        self._decided, self._factor, self._lr, self._exact = False, factor, lr, exact
        for parameter in self.reducer.parameters.values():
            parameter.grad = None
        progress = self.state.progress
        return {"learning_rate": lr, "gradient_norm": progress.norm, "skipped": progress.skipped}

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
        with self.trace.span("exposed"):
            buckets = self.reducer.land(buckets)
        with self.trace.span("optimizer"):
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
                norms = torch.stack([self._norms[bucket.index] for bucket in self.reducer.buckets])
                self.state.progress.norm = float(torch.linalg.vector_norm(norms)) * self._factor

    def _decide(self) -> bool:
        """Whether the step that waits is taken. One that is not changes nothing, once everything has landed."""
        if self._decided:
            return True
        with self.trace.span("exposed"):
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

    A gradient that is one step old is not what momentum bears: on a quadratic, with the mean of gradients that Adam
    keeps at 0.9, the steepest curvature at which training is stable falls from 38 / lr to 1 / lr. So each rank goes
    ahead by its own gradient, as if all ranks had the same, and takes its next gradient there. When the sum is in, it
    goes back and takes the step that all take; what is old is only what the others' gradients add to its own. (As the
    first half of a batch is in ACCO: Nabli et al. 2024, arXiv:2406.02613, section 3.)

    Attributes:
        agreed: the weights that are equal on all ranks, by parameter; empty while the model has them.
    """

    def __init__(self, *args):
        super().__init__(*args)
        self.agreed = {name: slots["anchor"].clone() for name, slots in self.state.shared.items()}
        for module in self.state.model.modules():
            if next(module.parameters(recurse=False), None) is not None:
                module.register_forward_pre_hook(self._before)

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
        if self.state.progress.under_way:
            self.reducer.finish()
            self._catch_up()

    def _catch_up(self) -> None:
        """Where all ranks are, take the step that was under way."""
        progress = self.state.progress
        if progress.under_way:
            with self.trace.span("optimizer"):
                self._assign(self.agreed)
            super().take(*progress.under_way)
            self.agreed, progress.under_way = {}, []

    @torch.no_grad()
    def _go_ahead(self, factor: float, exact: bool, lr: float) -> None:
        """As all would by the gradients in `p.grad`; the optimizer forgets it."""
        self.agreed = {name: parameter.clone() for name, parameter in self.state.parameters.items()}
        buckets = self.reducer.buckets
        norm = total_norm(buckets) * factor
        if math.isfinite(norm):
            with optimizer.forgetful(self.state.optimizer):
                self._apply(buckets, factor * self._clip(norm), lr, exact)

    @contextmanager
    def agreeing(self):
        ahead = {name: self.state.parameters[name].detach().clone() for name in self.agreed}
        self._assign(self.agreed)
        try:
            yield
        finally:
            self._assign(ahead)

    @torch.no_grad()
    def _assign(self, weights: Mapping[str, Tensor]) -> None:
        for name, values in weights.items():
            self.state.parameters[name].copy_(values)

    @torch.no_grad()
    def _before(self, *_) -> None:
        """A module is at work: compressors of several rounds must not wait for backward."""
        if not self.state.progress.under_way or torch.is_inference_mode_enabled():
            return  # what is made in inference mode cannot be used in training
        with torch.autocast(self.reducer.buckets[0].flat.device.type, enabled=False):
            self.reducer.advance()
