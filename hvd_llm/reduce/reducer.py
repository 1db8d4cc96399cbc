"""When gradients are sent: each bucket as soon as its last gradient is there, inside backward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hvd_llm.comm import Comm, Group
from hvd_llm.compress.base import At, Compressor
from hvd_llm.compress.none import none
from hvd_llm.reduce import policy
from hvd_llm.reduce.buckets import Bucket, allocate
from hvd_llm.reduce.exchange import Exchange
from hvd_llm.reduce.memory import Memory, Named
from hvd_llm.trace import Trace, now


@dataclass
class _Flight:
    """A bucket on its way in the current step."""

    missing: set[str]
    sent_ns: int = 0
    exchange: Exchange | None = None
    over: bool = False


@dataclass
class Reducer:
    """Owns `p.grad` of the given parameters and makes it the sum over all ranks.

    One optimizer step is: `start()`; any number of backward passes, `last_pass()` before the last one;
    `finish()`. Then every `p.grad` is a view of its bucket and holds the sum over ranks and passes. Whether the
    compressors' memory of this step counts is said by `memory.keep()` or `memory.drop()`.
    """

    parameters: Mapping[str, nn.Parameter]
    order: Sequence[str]
    compressor: Compressor
    comm: Comm
    groups: Mapping[str, Group]
    bucket_bytes: float
    trace: Trace
    kept: Named = field(default_factory=dict)  # what the compressors of an earlier run left behind
    warmup: int = 0  # first steps, in which nothing is compressed
    seed: int = 0
    buckets: list[Bucket] = field(init=False)

    def __post_init__(self):
        compressors = policy.choose(self.parameters, self.compressor)
        self.buckets = allocate(self.parameters, self.order, self.bucket_bytes, self.comm.allocate, compressors)
        self.memory = Memory(self.buckets, self.kept)
        self._home = {name: (bucket, view) for bucket in self.buckets for name, view in bucket.views.items()}
        self._flights: list[_Flight] = []
        self._last = False
        self._step, self._scale = 0, 1.0
        everyone = self.comm.ranks(self.groups["world"])
        self._place, self._size = everyone.index(self.comm.rank), len(everyone)
        for name, parameter in self.parameters.items():
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: self._arrived(name))

    def start(self, step: int = 0, scale: float = 1.0) -> None:
        """Forget the last step's gradients.

        Args:
            scale: what this step's loss is multiplied by. Gradients are divided by it before they are sent, so that
                compressors never see it.
        """
        for parameter in self.parameters.values():
            parameter.grad = None
        self._flights = [_Flight(set(bucket.views)) for bucket in self.buckets]
        self._last = False
        self._step, self._scale = step, scale

    def last_pass(self) -> None:
        """The next backward pass is the step's last: send what it completes."""
        self._last = True

    def _arrived(self, name: str) -> None:
        """A gradient is complete for this pass.

        Autograd hands over the first pass's gradient without copying it; one copy puts it in its bucket,
        which costs less than zeroing the bucket and adding. Later passes add to the view in place.
        """
        (bucket, view), parameter = self._home[name], self.parameters[name]
        if parameter.grad is not view:
            view.copy_(parameter.grad)
            parameter.grad = view
        if not self._last:
            return
        flight = self._flights[bucket.index]
        flight.missing.discard(name)
        if not flight.missing:
            self._send(bucket, flight)
        self._advance()

    @torch.no_grad()
    def _send(self, bucket: Bucket, flight: _Flight) -> None:
        ready = now()
        if self._scale != 1:
            bucket.flat.div_(self._scale)
        compressing = self._step >= self.warmup
        lossy = compressing and not bucket.segments[0].compressor.dense
        if lossy and not bucket.flat.sum().isfinite():
            bucket.flat.fill_(torch.nan)  # everywhere, so that no compressor can leave it out: all ranks must see it
        states = self.memory.draft(bucket.index)
        generators = [
            (segment.compressor if compressing else none)(segment.tensor, state, self._at(next(iter(segment.views))))
            for segment, state in zip(bucket.segments, states, strict=True)
        ]
        flight.exchange = Exchange(f"bucket.{bucket.index}", generators, self.comm, self.groups)
        flight.sent_ns = now()
        self.trace.add("bucket_queue", ready, flight.sent_ns, bucket.index)

    def _at(self, name: str) -> At:
        return At(name, self._place, self._size, self._step, self.seed)

    @torch.no_grad()
    def _advance(self) -> None:
        """Move every exchange that need not wait."""
        for bucket, flight in zip(self.buckets, self._flights, strict=True):
            if flight.exchange is not None and not flight.over and flight.exchange.advance():
                self._land(bucket, flight)

    def _land(self, bucket: Bucket, flight: _Flight) -> None:
        results = flight.exchange.finish()
        flight.over = True
        for segment, result in zip(bucket.segments, results, strict=True):
            if result.data_ptr() != segment.tensor.data_ptr():
                segment.tensor.copy_(result.view_as(segment.tensor))
        payload = flight.exchange.payload_bytes
        self.trace.add("bucket_exchange", flight.sent_ns, now(), bucket.index, payload)

    @torch.no_grad()
    def finish(self) -> None:
        """Send what backward did not complete, wait for everything."""
        start = now()
        for bucket, flight in zip(self.buckets, self._flights, strict=True):
            if flight.exchange is None:
                self._fill(bucket)
                self._send(bucket, flight)
        for bucket, flight in zip(self.buckets, self._flights, strict=True):
            if not flight.over:
                flight.exchange.finish()
                self._land(bucket, flight)
        self.trace.add("exposed", start, now())

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
