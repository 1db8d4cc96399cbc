"""Buckets on their way in an order that all ranks keep to, so that the next forward pass can hide what is left of it.

In backward, buckets become ready from the last layers to the first, and a slow network is busy from the first one on.
Those that it has not taken when backward ends are sent the other way round, because forward needs the first layers
first. Only few are under way at a time: what was handed to Horovod cannot be overtaken any more.

With few under way, ranks that chose for themselves could wait for each other for ever. So all take the order that
follows from the step before: how many the slowest rank, whose backward was over last, had sent by then, and one more if
another could have been under way while a bucket waited for its turn. (The last few become ready so late that they may
be counted too.)
"""

import torch
from torch import Tensor

from hvd_llm.comm import Handle
from hvd_llm.reduce.sender import Sender
from hvd_llm.trace import now

UNDER_WAY = 2  # one on the network, one that the other ranks know of already


class InTurn(Sender):
    """A `Sender` whose buckets wait for their turn."""

    def __init__(self, *args):
        super().__init__(*args)
        comm = self._route.comm
        # How many ranks have a bad gradient; how many buckets each had sent when its backward was over, or could have.
        self._agreement = comm.allocate(1 + comm.size, torch.int64, torch.device("cpu"))
        self._agreed: Handle | None = None
        self._early = len(self.buckets)  # those that are sent in the order of backward
        self._turns: list[int] = []
        self._waiting: dict[int, tuple[int, bool, int]] = {}  # bucket → what else `send` was given, and when
        self._norms: list[Tensor] = []
        self._idle = False  # whether a bucket waited for its turn though the network could have taken it

    @torch.no_grad()
    def send(self, bucket, step, compress=True):
        if not self._turns:  # a step's first
            assert not self._flights, "buckets of the last step are still under way"
            self._turns = [*range(self._early), *reversed(range(self._early, len(self.buckets)))]
            self._norms, self._idle = [], False
        parts = [bucket.flat, self.memory.unsent(bucket.index)]
        self._norms += [torch.linalg.vector_norm(part) for part in parts if part is not None]
        self._waiting[bucket.index] = step, compress, now()
        self.advance()

    def advance(self):
        moved = super().advance()
        while self._turns and self._turns[0] in self._waiting and len(self._flights) < UNDER_WAY:
            turn = self._turns.pop(0)
            super().send(self.buckets[turn], *self._waiting.pop(turn))
            moved = True
        self._idle |= bool(self._waiting) and len(self._flights) < UNDER_WAY
        return moved

    def over(self) -> None:
        """Backward is over, and every bucket was given to `send`: tell the others how it was."""
        assert len(self._waiting) == len(self._turns)
        comm = self._route.comm
        self._agreement.zero_()
        # So large that the norm of the sum may not be finite; a sum's is at most that of all its parts.
        self._agreement[0] = not (torch.stack(self._norms).sum() * comm.size).isfinite()
        self._agreement[1 + comm.rank] = len(self.buckets) - len(self._turns) + self._idle
        self._agreed = comm.sum_async(f"{self._name}.over", self._agreement)

    def finite(self) -> bool:
        """Wait for the others' `over`: whether every rank's gradients were finite."""
        self.watch(self._agreed.ready)  # the network must not run dry meanwhile
        bad, *early = self._agreed.wait().tolist()
        self._early = min(len(self.buckets), max(early))
        return not bad

    def finish(self, buckets):
        wanted = {bucket.index for bucket in buckets}
        self.watch(lambda: wanted.isdisjoint(self._turns) and wanted.isdisjoint(self._flights))
