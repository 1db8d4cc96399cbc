"""Weights change layer by layer, hidden behind the next forward pass."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from hvd_llm.reduce.buckets import Bucket
from hvd_llm.update.at_once import Update


class LayerByLayer(Update):
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
