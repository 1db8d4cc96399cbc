"""When gradients are sent: each bucket as soon as its last gradient is there, inside backward; or when that is over."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hvd_llm.comm import Handle
from hvd_llm.reduce.buckets import Bucket, lookup
from hvd_llm.reduce.memory import Memory, Named
from hvd_llm.reduce.policy import Planned
from hvd_llm.reduce.sender import Route, Sender
from hvd_llm.reduce.turns import InTurn


def home(buckets: Iterable[Bucket]) -> dict[str, tuple[Bucket, Tensor]]:
    """Parameter name → where its gradient is: the bucket, and the view of it."""
    return {name: (bucket, view) for bucket in buckets for name, view in bucket.views.items()}


class Reducer:
    """Owns `p.grad` of the given parameters and makes it the sum over all ranks.

    One optimizer step is: `start()`; any number of backward passes, `last_pass()` before the last one;
    `finish()`. Then every `p.grad` is a view of its bucket and holds the sum over ranks and passes. Whether the
    compressors' memory of this step counts is said by `memory.keep()` or `memory.drop()`.

    With overlap "forward", `finish` does not wait: ask `finite()`, then `land(buckets)` as they are needed. All must
    have landed before the next step's first gradient arrives.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        plan: Sequence[Planned],
        route: Route,
        kept: Named | None = None,
        overlap: Literal["none", "backward", "forward"] = "backward",
        lookups: Mapping[str, Tensor] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ):
        """
        Args:
            meanwhile: called before an arriving gradient is taken up, and when backward is over: looks after what else
                is on its way.
            plan: the buckets to make.
            kept: what the compressors of an earlier run left behind.
            overlap: what buckets travel under.
            lookups: parameter → leaf that gets a part of its gradient, which travels apart: `plan` has it as
                `lookup(name)`.
        """
        self.parameters = dict(parameters) | {lookup(name): leaf for name, leaf in (lookups or {}).items()}
        sender = InTurn if overlap == "forward" else Sender
        self._sender = sender("bucket", self.parameters, plan, route, kept or {})
        self.buckets: list[Bucket] = self._sender.buckets
        self._overlap = overlap
        self._trace, self._meanwhile = route.trace, meanwhile
        self._home = home(self.buckets)
        self._parted = [(name, lookup(name)) for name in lookups or {}]
        assert len(self._parted) <= 1, "embeddings that share buckets would have to land together"
        self._missing: list[set[str]] = []  # by bucket: whose gradient is not there yet
        self._sent: set[int] = set()
        self._last = self._alone = self._exact = False
        self._step, self._scale = 0, 1.0
        for name, parameter in self.parameters.items():
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._arrived(name))

    @property
    def memory(self) -> Memory:
        return self._sender.memory

    def start(self, step: int = 0, scale: float = 1.0, alone: bool = False, exact: bool = False) -> None:
        """Forget the last step's gradients.

        Args:
            scale: what this step's loss is multiplied by. Gradients are divided by it before they are sent, so that
                compressors never see it.
            alone: this step's gradients stay on this rank.
            exact: this step's gradients are not compressed.
        """
        for parameter in self.parameters.values():
            parameter.grad = None
        self._missing = [set(bucket.views) for bucket in self.buckets]
        self._sent = set()
        self._last, self._alone, self._exact = False, alone, exact
        self._step, self._scale = step, scale

    def last_pass(self) -> None:
        """The next backward pass is the step's last: send what it completes."""
        self._last = self._overlap != "none" and not self._alone

    def _arrived(self, name: str) -> None:
        """A gradient is complete for this pass.

        Autograd hands over the first pass's gradient without copying it; one copy puts it in its bucket,
        which costs less than zeroing the bucket and adding. Later passes add to the view in place.
        """
        self._meanwhile()
        (bucket, view), parameter = self._home[name], self.parameters[name]
        if parameter.grad is not view:
            view.copy_(parameter.grad)
            parameter.grad = view
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
            self._sender.send(bucket, self._step, compress=not self._exact)

    def finish(self) -> None:
        """Send what backward did not complete; wait for everything, unless the next forward pass is to hide it."""
        with self._trace.span("exposed"):
            self._meanwhile()
            for bucket in self.buckets:
                if bucket.index not in self._sent:
                    self._fill(bucket)
                    self._send(bucket)
            if self._overlap == "forward":
                self._sender.over()
            else:
                self.land(self.buckets)

    def finite(self) -> bool:
        """Overlap "forward": wait until it is known whether all ranks' gradients are finite."""
        return self._sender.finite()

    @torch.no_grad()
    def land(self, buckets: Iterable[Bucket]) -> list[Bucket]:
        """Overlap "forward": wait for some buckets, and those with other parts of their gradients; return all of these.

        Then they hold the sums.
        """
        wanted = {bucket.index for bucket in buckets}
        pairs = [(self._home[whole], self._home[part]) for whole, part in self._parted]
        pairs = [pair for pair in pairs if wanted & {bucket.index for bucket, _ in pair}]
        wanted |= {bucket.index for pair in pairs for bucket, _ in pair}
        landed = [self.buckets[index] for index in sorted(wanted)]
        self._sender.finish(landed)
        for (_, whole), (_, part) in pairs:
            whole.add_(part)
            part.zero_()
        return landed

    def advance(self) -> None:
        """Move what need not wait."""
        self._sender.advance()

    def wait(self, handle: Handle) -> Any:
        """Wait for another operation; with overlap "forward", buckets may take their turns meanwhile."""
        if self._overlap == "forward":
            self._sender.watch(handle.ready)
        return handle.wait()

    def _fill(self, bucket: Bucket) -> None:
        """Parameters that got no gradient in this step (on this rank) contribute zeros."""
        for name, view in bucket.views.items():
            if self.parameters[name].grad is None:
                view.zero_()
                self.parameters[name].grad = view
