"""What a step is counted by, over all ranks: its loss, its targets and its tokens."""

import torch
from torch import Tensor

from hvd_llm.comm import Comm, Handle
from hvd_llm.comm.solo import Done
from hvd_llm.config import Sync
from hvd_llm.state import Progress


class Totals:
    """Sums over all ranks. While ranks train apart, one for all steps of a round; until then each goes by its own."""

    def __init__(self, comm: Comm, progress: Progress, sync: Sync, steps: int):
        """Collective.

        Args:
            progress: where the run is (a resumed one's has been restored); holds a round's sums so far from now on.
            steps: those of the whole run, whose last one ends a round.
        """
        self._comm, self._progress, self._sync, self._steps = comm, progress, sync, steps
        self._sum = comm.allocate(3, torch.float64, torch.device("cpu"))
        self._since = torch.zeros(3, dtype=torch.float64)  # what has not been summed yet

    def share(self, alone: bool, loss: Tensor, targets: int, tokens: int) -> Handle:
        """Start summing what this rank has of a step; `wait` gives (loss, targets, tokens).

        Of a step that is not a round's last one, they are this rank's own, and no tokens.
        """
        mine = torch.tensor([float(loss), targets, tokens], dtype=torch.float64)
        if not alone:
            self._sum.copy_(mine)
            return self._comm.sum_async("step.totals", self._sum)
        self._since += mine
        done = self._progress.step + 1
        if (done - self._sync.after) % self._sync.every and done != self._steps:
            return Done(torch.tensor([*mine[:2], 0.0]))
        self._take_since()
        if self._comm.rank == 0:
            self._sum[:2] += torch.tensor(self._progress.round_so_far, dtype=torch.float64)
        self._progress.round_so_far = [0.0, 0.0]
        return self._comm.sum_async("step.totals", self._sum)

    def remember(self) -> None:
        """Bring `progress` up to date with a round that goes on. Collective where ranks train apart."""
        if self._sync.every > 1:
            self._take_since()
            sums = self._comm.sum("step.totals", self._sum).tolist()
            so_far = self._progress.round_so_far
            self._progress.round_so_far = [had + more for had, more in zip(so_far, sums[:2], strict=True)]
            self._progress.tokens += int(sums[2])

    def _take_since(self) -> None:
        self._sum.copy_(self._since)
        self._since.zero_()
