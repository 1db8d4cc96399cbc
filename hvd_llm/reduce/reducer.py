"""When gradients are sent: each bucket as soon as its last gradient is there, inside backward."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from hvd_llm.compress.base import Compressor
from hvd_llm.reduce.buckets import Bucket
from hvd_llm.reduce.memory import Memory, Named
from hvd_llm.reduce.sender import Route, Sender
from hvd_llm.trace import now


class Reducer:
    """Owns `p.grad` of the given parameters and makes it the sum over all ranks.

    One optimizer step is: `start()`; any number of backward passes, `last_pass()` before the last one;
    `finish()`. Then every `p.grad` is a view of its bucket and holds the sum over ranks and passes. Whether the
    compressors' memory of this step counts is said by `memory.keep()` or `memory.drop()`.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        order: Sequence[str],
        compressor: Compressor,
        route: Route,
        kept: Named | None = None,
        warmup: int = 0,
        meanwhile: Callable[[], None] = lambda: None,
    ):
        """
        Args:
            meanwhile: called whenever a gradient arrives: moves what else is on its way.
            order: names as their gradients become ready.
            kept: what the compressors of an earlier run left behind.
            warmup: first steps, in which nothing is compressed.
        """
        self.parameters = parameters
        self._sender = Sender("bucket", parameters, order, compressor, route, kept or {})
        self._warmup, self._trace, self._meanwhile = warmup, route.trace, meanwhile
        self._home = {name: (bucket, view) for bucket in self.buckets for name, view in bucket.views.items()}
        self._missing: list[set[str]] = []  # by bucket: whose gradient is not there yet
        self._sent: set[int] = set()
        self._last = self._alone = False
        self._step, self._scale = 0, 1.0
        for name, parameter in parameters.items():
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._arrived(name))

    @property
    def buckets(self) -> list[Bucket]:
        return self._sender.buckets

    @property
    def memory(self) -> Memory:
        return self._sender.memory

    def start(self, step: int = 0, scale: float = 1.0, alone: bool = False) -> None:
        """Forget the last step's gradients.

        Args:
            scale: what this step's loss is multiplied by. Gradients are divided by it before they are sent, so that
                compressors never see it.
            alone: this step's gradients stay on this rank.
        """
        for parameter in self.parameters.values():
            parameter.grad = None
        self._missing = [set(bucket.views) for bucket in self.buckets]
        self._sent = set()
        self._last, self._alone = False, alone
        self._step, self._scale = step, scale

    def last_pass(self) -> None:
        """The next backward pass is the step's last: send what it completes."""
        self._last = not self._alone

    def _arrived(self, name: str) -> None:
        """A gradient is complete for this pass.

        Autograd hands over the first pass's gradient without copying it; one copy puts it in its bucket,
        which costs less than zeroing the bucket and adding. Later passes add to the view in place.
        """
        (bucket, view), parameter = self._home[name], self.parameters[name]
        if parameter.grad is not view:
            view.copy_(parameter.grad)
            parameter.grad = view
        self._meanwhile()
        if not self._last:
            return
        missing = self._missing[bucket.index]
        missing.discard(name)
        if not missing:
            self._send(bucket)
        self._sender.advance()

    @torch.no_grad()
    def _send(self, bucket: Bucket) -> None:
        self._sent.add(bucket.index)
        if self._scale != 1:
            bucket.flat.div_(self._scale)
        if not self._alone:
            self._sender.send(bucket, self._step, self._step >= self._warmup)

    def finish(self) -> None:
        """Send what backward did not complete, wait for everything."""
        start = now()
        for bucket in self.buckets:
            if bucket.index not in self._sent:
                self._fill(bucket)
                self._send(bucket)
        self._sender.finish(self.buckets)
        self._trace.add("exposed", start, now())

    def _fill(self, bucket: Bucket) -> None:
        """Parameters that got no gradient in this step (on this rank) contribute zeros."""
        for name, view in bucket.views.items():
            if self.parameters[name].grad is None:
                view.zero_()
                self.parameters[name].grad = view

    @torch.no_grad()
    def norm(self) -> Tensor:
        """Global L2 norm of all gradients, a scalar; the same bits on all ranks."""
        return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(bucket.flat) for bucket in self.buckets]))

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply all gradients in place."""
        if factor == 1:
            return
        for bucket in self.buckets:
            bucket.flat.mul_(factor)
