"""Worlds in which exchanges take place: N simulated ranks that a test sees all of, or real ones of which it is one."""

import pytest
import torch

from hvd_llm import mesh
from hvd_llm.compress.base import At
from hvd_llm.errors import UserError
from hvd_llm.reduce import lockstep
from hvd_llm.reduce.exchange import Exchange
from hvd_llm.reduce.pricing import rehearse


def node_size(size: int) -> int:
    """How many ranks share a host in a test; more than one host, if there can be."""
    return {4: 2, 64: 8}.get(size, 1)


def mesh_of(comm, groups=("node", "across")) -> mesh.Mesh:
    """Real ranks on hosts that they make believe, ready to talk within the groups named."""
    ranks = mesh.build(comm.rank, [f"host{rank // node_size(comm.size)}" for rank in range(comm.size)])
    comm.register(ranks.named(groups))
    return ranks


def possible(compressor, size, node_size=1):
    """Skip the test if the compressor refuses so many ranks."""
    try:
        rehearse(compressor, size, node_size)
    except UserError as error:
        pytest.skip(str(error))


class Simulated:
    """All ranks in this process.

    Attributes:
        ranks: those that this process is.
        node_size: ranks on each host.
    """

    def __init__(self, size: int, one_host: bool = False):
        self.size, self.ranks = size, range(size)
        self.node_size = size if one_host else node_size(size)

    def reduce(self, compressor, gradients, states, at):
        """One exchange; `gradients` and `states` are those of `ranks`, and so are the results."""
        return lockstep.reduce(compressor, gradients, states, at, node_size=self.node_size)

    def total(self, tensors):
        """The sum over all ranks of one tensor for each of `ranks`."""
        return torch.stack(list(tensors)).sum(0)

    def everywhere(self, tensors):
        """Every rank's tensor, from one for each of `ranks`."""
        return list(tensors)


class Real:
    """One of several processes."""

    def __init__(self, comm):
        self.size, self.ranks, self.node_size = comm.size, [comm.rank], node_size(comm.size)
        ranks = mesh_of(comm)
        self._comm, self._groups = comm, {"world": ranks.world, "node": ranks.node, "across": ranks.across}

    def reduce(self, compressor, gradients, states, at):
        places = {name: self._comm.place(group) for name, group in self._groups.items()}
        here = At(at.name, self._comm.rank, self.size, at.step, at.seed, groups=places)
        generator = compressor(gradients[0], states[0], here)
        return Exchange("real", [generator], self._comm, self._groups).finish()

    def total(self, tensors):
        return self._comm.sum("total", tensors[0].clone())

    def everywhere(self, tensors):
        return self._comm.gather_async("everywhere", tensors[0]).wait()
