"""Weights change on every rank by its own gradients; ranks meet now and then: `sync.every` above 1."""

from contextlib import nullcontext

from hvd_llm.compress.none import none
from hvd_llm.reduce.outer import Outer
from hvd_llm.reduce.policy import Planned
from hvd_llm.reduce.reducer import Reducer
from hvd_llm.update.at_once import Update


class Apart(Update):
    """All weights at once, by this rank's own gradients once `sync.after` steps are done.

    Attributes:
        outer: how ranks meet.
    """

    def __init__(self, config, state, plan, route):
        self._after = config.sync.after
        super().__init__(config, state, plan, route)
        state.part()

    def _make_reducer(self, config, plan, route):
        state = self.state
        self.outer = Outer(
            config.sync,
            state.parameters,
            plan.buckets,
            route,
            state.memory,
            state.shared,
            state.own,
            state.progress.step,
        )
        plain = [Planned(planned.names, none) for planned in plan.buckets]
        return Reducer(state.parameters, plain, route, meanwhile=self.outer.advance)

    @property
    def _parted(self) -> bool:
        """Whether a step has been taken alone."""
        return self.state.progress.step > self._after

    def begin(self, step):
        if step == self._after:
            self.outer.begin()
        return step >= self._after

    def take(self, factor, exact, lr):
        row = super().take(factor, exact, lr)
        step = self.state.progress.step
        if step >= self._after:
            self.outer.after(step)
            self.state.progress.apart = True
        return row

    @property
    def unfinished(self):
        return self.state.progress.apart

    def end(self):
        if self.unfinished:
            self.outer.meet(self.state.progress.step - 1)
            self.state.progress.apart = False

    def agreeing(self):
        return self.outer.agreed() if self._parted else nullcontext()

    def remember(self):
        if not self._parted:
            self.outer.begin()
        memory, shared, sent = self.outer.state()
        self.state.remember(memory, shared, self.state.own_weights() | self.state.own_optimizer() | sent)
