"""Worlds in which exchanges take place: N simulated ranks that a test sees all of, or real ones of which it is one."""

import torch

from hvd_llm.comm import WORLD
from hvd_llm.compress.base import At
from hvd_llm.reduce import lockstep
from hvd_llm.reduce.exchange import Exchange


class Simulated:
    """All ranks in this process.

    Attributes:
        ranks: those that this process is.
    """

    def __init__(self, size: int):
        self.size, self.ranks = size, range(size)

    def reduce(self, compressor, gradients, states, at):
        """One exchange; `gradients` and `states` are those of `ranks`, and so are the results."""
        return lockstep.reduce(compressor, gradients, states, at)

    def total(self, tensors):
        """The sum over all ranks of one tensor for each of `ranks`."""
        return torch.stack(list(tensors)).sum(0)

    def everywhere(self, tensors):
        """Every rank's tensor, from one for each of `ranks`."""
        return list(tensors)


class Real:
    """One of several processes."""

    def __init__(self, comm):
        self.size, self.ranks = comm.size, [comm.rank]
        self._comm = comm

    def reduce(self, compressor, gradients, states, at):
        here = At(at.name, self._comm.rank, self.size, at.step, at.seed)
        generator = compressor(gradients[0], states[0], here)
        return Exchange("real", [generator], self._comm, {"world": WORLD}).finish()

    def total(self, tensors):
        return self._comm.sum("total", tensors[0].clone())

    def everywhere(self, tensors):
        return self._comm.gather_async("everywhere", tensors[0]).wait()
