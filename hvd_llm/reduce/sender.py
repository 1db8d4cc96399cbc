"""Flat buckets on their way: each is handed to its compressor, moved along whenever somebody looks, and landed."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hvd_llm.comm import Comm, Group
from hvd_llm.comm.patience import Patience
from hvd_llm.compress.base import At
from hvd_llm.compress.none import none
from hvd_llm.reduce.buckets import Bucket, allocate
from hvd_llm.reduce.exchange import Exchange
from hvd_llm.reduce.memory import Memory, Named
from hvd_llm.reduce.policy import Planned
from hvd_llm.trace import Trace, now


@dataclass
class Tally:
    """What was sent so far: `sent_bytes` of this rank (see `pricing`)."""

    sent_bytes: float = 0.0


@dataclass(frozen=True)
class Route:
    """How buckets travel.

    Attributes:
        groups: what the names in requests ("world", "node", …) stand for on this rank.
        seed: of compressors that draw random numbers.
        tally: of all that takes this route.
    """

    comm: Comm
    groups: Mapping[str, Group]
    trace: Trace
    seed: int = 0
    tally: Tally = field(default_factory=Tally)


@dataclass
class _Flight:
    bucket: Bucket
    exchange: Exchange
    sent_ns: int


def _noted(exchange: Generator, what: str) -> Generator:
    """The same, and what it raises says where it comes from: what is above it in a traceback is all ours."""
    try:
        return (yield from exchange)
    except Exception as error:
        error.add_note(f"It was raised in {what}.")
        raise


class Sender:
    """Sums buckets over all ranks, in place.

    Attributes:
        buckets: in the order in which they are sent.
        memory: what the compressors keep. What they drafted in a step counts once `memory.keep` is called.
    """

    def __init__(
        self,
        name: str,
        parameters: Mapping[str, Tensor],
        plan: Sequence[Planned],
        route: Route,
        kept: Named,
    ):
        """Make the buckets.

        Args:
            name: begins the names of its operations.
            plan: the buckets to make.
            kept: what the compressors of an earlier run left behind.
        """
        self.buckets = allocate(parameters, plan, route.comm.allocate)
        self.memory = Memory(self.buckets, kept)
        self._name, self._route = name, route
        self._flights: dict[int, _Flight] = {}
        self._places = {name: route.comm.place(group) for name, group in route.groups.items()}

    @torch.no_grad()
    def send(self, bucket: Bucket, step: int, compress: bool = True, ready_ns: int | None = None) -> None:
        """Let a bucket go; it must not be touched until it has landed.

        Args:
            ready_ns: since when it could have gone; now if None.
        """
        ready_ns = ready_ns or now()
        unsent = self.memory.unsent(bucket.index)
        if unsent is not None:
            bucket.flat.add_(unsent)
        lossy = compress and not bucket.segments[0].compressor.dense
        if lossy and not bucket.flat.sum().isfinite():
            bucket.flat.fill_(torch.nan)  # everywhere, so that no compressor can leave it out: all ranks must see it
        generators = []
        for segment, state in zip(bucket.segments, self.memory.draft(bucket.index), strict=True):
            compressor = segment.compressor if compress or segment.compressor.dense else none
            at = At(next(iter(segment.views)), *self._places["world"], step, self._route.seed, groups=self._places)
            generators.append(_noted(compressor(segment.tensor, state, at), f"compressor {compressor}, step {step}"))
        name = f"{self._name}.{bucket.index}"
        exchange = Exchange(name, generators, self._route.comm, self._route.groups)
        self._flights[bucket.index] = _Flight(bucket, exchange, now())
        self._route.trace.add("bucket_queue", ready_ns, self._flights[bucket.index].sent_ns, bucket.index)

    @torch.no_grad()
    def advance(self) -> bool:
        """Move everything that need not wait; returns whether anything moved."""
        moved = False
        for flight in list(self._flights.values()):
            before = flight.exchange.rounds
            over = flight.exchange.advance()
            moved |= over or flight.exchange.rounds > before
            if over:
                self._land(flight.bucket)
        return moved

    def watch(self, done: Callable[[], bool]) -> None:
        """Move everything along until that is so: while one bucket waits for its next round, the others go on."""
        patience = Patience()
        while True:
            if self.advance():
                patience = Patience()
            if done():
                return
            patience.pause()

    @torch.no_grad()
    def finish(self, buckets: Iterable[Bucket]) -> None:
        """Wait for some buckets; then they hold the sums.

        Raises:
            UserError: a compressor returned something else.
        """
        wanted = [bucket for bucket in buckets if bucket.index in self._flights]
        if any(segment.compressor != none for bucket in wanted for segment in bucket.segments):  # of several rounds
            self.watch(lambda: self._flights.keys().isdisjoint(bucket.index for bucket in wanted))
        else:
            for bucket in wanted:
                self._land(bucket)

    def _land(self, bucket: Bucket) -> None:
        flight = self._flights[bucket.index]
        for segment, result in zip(bucket.segments, flight.exchange.finish(), strict=True):
            segment.compressor.check(result, segment.tensor.shape)
            if result.data_ptr() != segment.tensor.data_ptr():
                segment.tensor.copy_(result)
            elif result.stride() != segment.tensor.stride() or result.dtype != segment.tensor.dtype:
                segment.tensor.copy_(result.clone())  # the same memory, read in another way
        del self._flights[bucket.index]
        span = flight.sent_ns, now(), bucket.index
        self._route.trace.add("bucket_exchange", *span, flight.exchange.payload_bytes)
        self._route.tally.sent_bytes += flight.exchange.sent_bytes
        self._route.trace.add("bucket_sent", *span, round(flight.exchange.sent_bytes))
