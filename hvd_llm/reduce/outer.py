"""Ranks that train apart and meet now and then: local SGD, DiLoCo, streaming DiLoCo.

Every rank takes `every` steps alone. Then the ranks exchange how far each has come from where they last agreed (the
anchor): the pseudo-gradient, which takes the gradient's way through any compressor. An outer step moves the anchor, and
all go on from there.

- Local SGD (Stich 2019, arXiv:1805.09767): outer learning rate 1, no momentum: the mean of the weights.
- DiLoCo (Douillard et al. 2023, arXiv:2311.08105), algorithm 1: Nesterov momentum.
- Streaming DiLoCo (Douillard et al. 2025, arXiv:2501.18512): buckets form fragments that meet in turn (section 2.2.1);
  what was sent may arrive `delay` steps later, hidden behind them, and is mixed with what the rank has meanwhile
  learnt (section 2.2.2: weights = mix x own + (1 - mix) x anchor).
- Delayed averaging (Zhou et al. 2020, arXiv:2006.00441): the steps taken meanwhile are added to what arrives (section
  3.1: weights = anchor + own - own when it was sent), so that each counts once, and fully.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from hvd_llm.config import Sync
from hvd_llm.errors import UserError
from hvd_llm.reduce.buckets import Bucket
from hvd_llm.reduce.memory import SENT, Named
from hvd_llm.reduce.policy import Planned
from hvd_llm.reduce.sender import Route, Sender
from hvd_llm.trace import now


class Outer:
    """The rounds of ranks that train apart.

    Attributes:
        anchor: parameter → where all ranks agreed last, equal on all.
        momentum: parameter → the outer optimizer's, equal on all.
    """

    def __init__(
        self,
        sync: Sync,
        parameters: Mapping[str, nn.Parameter],
        plan: Sequence[Planned],
        route: Route,
        memory: Named | None = None,
        shared: Named | None = None,
        own: Mapping[str, Tensor] | None = None,
        step: int = 0,
    ):
        """
        Args:
            memory, shared, own: what `state` gave an earlier run.
            step: steps done.
        """
        shared = shared or {}
        self.parameters = parameters
        self.anchor = {name: _start(shared, name, "anchor", p) for name, p in parameters.items()}
        self.momentum = {name: _start(shared, name, "momentum", torch.zeros_like(p)) for name, p in parameters.items()}
        self._sync, self._trace, self._size = sync, route.trace, route.comm.size
        self._sender = Sender("outer", parameters, plan, route, memory or {})
        self._fragments = _fragments(self._sender.buckets, sync.fragments)
        self._landing: dict[int, int] = {}  # fragment under way → step after which it lands
        self._settled: set[int] = set()  # those of them whose sums are there already
        # Parameter under way → this rank's weights as they were sent, if the steps since are to be added.
        self._sent = {
            name: own[SENT + name].to(p.device) for name, p in parameters.items() if own and SENT + name in own
        }
        for fragment, buckets in enumerate(self._fragments):
            views = {name: view for bucket in buckets for name, view in bucket.views.items()}
            arriving = {name for name in views if "arriving" in shared.get(name, {})}
            if not arriving:
                continue
            if arriving != views.keys():
                raise UserError(
                    "this checkpoint was written while exchanges were under way: reduce.bucket_mb must stay as it was",
                    shared=True,
                )
            for name, view in views.items():
                view.copy_(shared[name]["arriving"])
            turn = max(past for past in range(step - sync.every, step) if self._turns(past)[fragment])
            self._landing[fragment] = turn + sync.delay
            self._settled.add(fragment)

    def advance(self) -> None:
        """Move what is on its way and need not wait."""
        self._sender.advance()

    def begin(self) -> None:
        """From here on the ranks part: this is where they agree."""
        for name, parameter in self.parameters.items():
            self.anchor[name].copy_(parameter.detach())

    def after(self, step: int) -> None:
        """A step is done: send fragments whose turn it is, take up those that land."""
        start = now()
        turns = self._turns(step)
        for fragment, buckets in enumerate(self._fragments):
            if turns[fragment]:
                self._send(buckets, step)
                self._landing[fragment] = step + self._sync.delay
        self._sender.advance()
        landing = [fragment for fragment, when in self._landing.items() if when <= step]
        for fragment in landing:
            self._land(fragment, late=self._sync.delay > 0)
        if landing:
            self._trace.add("exposed", start, now())

    def meet(self, step: int) -> None:
        """Everything lands that is under way, then all that was learnt since is exchanged at once."""
        for fragment in list(self._landing):
            self._land(fragment, late=self._sync.delay > 0)
        met = self._turns(step) if self._sync.delay == 0 else [False] * len(self._fragments)
        for fragment, buckets in enumerate(self._fragments):
            if not met[fragment]:
                self._send(buckets, step)
                self._landing[fragment] = step
        for fragment in list(self._landing):
            self._land(fragment, late=False)

    def _turns(self, step: int) -> list[bool]:
        """By fragment, whether it is sent after `step`: their turns are spread evenly over a round."""
        every, count = self._sync.every, len(self._fragments)
        done = step + 1 - self._sync.after
        return [done % every == every * (fragment + 1) // count % every for fragment in range(count)]

    @torch.no_grad()
    def _send(self, buckets: Sequence[Bucket], step: int) -> None:
        for bucket in buckets:
            for name, view in bucket.views.items():
                torch.sub(self.anchor[name], self.parameters[name], out=view)
                if self._sync.delay and self._sync.late == "add":
                    self._sent[name] = self.parameters[name].detach().clone()
            bucket.flat.div_(self._size)
            self._sender.send(bucket, step)

    @torch.no_grad()
    def _settle(self, buckets: Sequence[Bucket]) -> None:
        """Wait until buckets hold the mean change."""
        self._sender.finish(buckets)
        for bucket in buckets:
            if _finite(bucket):
                self._sender.memory.keep(bucket.index)
            else:
                self._sender.memory.drop(bucket.index)

    @torch.no_grad()
    def _land(self, fragment: int, late: bool) -> None:
        """The outer step: SGD with Nesterov momentum, on pseudo-gradients. None, on any rank, by what is not finite.

        Args:
            late: whether the rank has gone on meanwhile, and keeps of it what `sync` says.
        """
        buckets = self._fragments[fragment]
        if fragment not in self._settled:
            self._settle(buckets)
        for bucket in filter(_finite, buckets):
            for name, change in bucket.views.items():
                momentum = self.momentum[name].mul_(self._sync.outer_momentum).add_(change)
                change.add_(momentum, alpha=self._sync.outer_momentum)
                self.anchor[name].sub_(change, alpha=self._sync.outer_lr)
        for name in (name for bucket in buckets for name in bucket.views):
            anchor, weights = self.anchor[name], self.parameters[name]
            sent = self._sent.pop(name, None)
            if not late or not weights.sum().isfinite():
                weights.copy_(anchor)
            elif sent is not None:
                weights.sub_(sent).add_(anchor)
            else:
                weights.lerp_(anchor, 1 - self._sync.mix)
        self._settled.discard(fragment)
        del self._landing[fragment]

    def state(self) -> tuple[Named, Named, dict[str, Tensor]]:
        """What a checkpoint keeps: by parameter the compressors' memory on this rank and what is equal on all ranks,
        and this rank's weights as it sent them, if what is under way is to be added to the steps since.

        What is under way is waited for, but lands when its time has come.
        """
        shared = {name: {"anchor": self.anchor[name], "momentum": self.momentum[name]} for name in self.parameters}
        for fragment in self._landing:
            if fragment not in self._settled:
                self._settle(self._fragments[fragment])
                self._settled.add(fragment)
            for bucket in self._fragments[fragment]:
                for name, view in bucket.views.items():
                    shared[name]["arriving"] = view
        return self._sender.memory.by_parameter(), shared, {SENT + name: value for name, value in self._sent.items()}

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """The model is the anchor meanwhile: what all ranks agree on."""
        own = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self._assign(self.anchor)
        try:
            yield
        finally:
            self._assign(own)

    @torch.no_grad()
    def _assign(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])


def _start(shared: Named, name: str, slot: str, otherwise: Tensor) -> Tensor:
    found = shared.get(name, {}).get(slot)
    return (otherwise.detach() if found is None else found.to(otherwise.device)).clone()


def _finite(bucket: Bucket) -> bool:
    return bool(bucket.flat.sum().isfinite())


def _fragments(buckets: Sequence[Bucket], count: int) -> list[list[Bucket]]:
    """Divide buckets among `count` fragments, in turn; fewer if there are not as many buckets."""
    count = min(count, len(buckets))
    return [list(buckets[fragment::count]) for fragment in range(count)]
