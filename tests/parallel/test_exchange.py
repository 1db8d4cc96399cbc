"""The Horovod driver and the lockstep driver run the same generator and give the same bits."""

import time

import pytest
import torch
from worlds import mesh_of

from hvd_llm.comm import WORLD
from hvd_llm.compress.base import AllToAll, At, Gather, Sum, compressor
from hvd_llm.compress.none import none
from hvd_llm.errors import UserError
from hvd_llm.reduce import lockstep, policy
from hvd_llm.reduce.exchange import Exchange
from hvd_llm.reduce.reducer import Reducer
from hvd_llm.reduce.sender import Route
from hvd_llm.trace import NoTrace

GROUPS = {"world": WORLD}


@compressor
def three_rounds(gradient, state, at):
    """Uses every request there is: norms are gathered, halves are exchanged, the scaled gradient is summed."""
    norms = yield Gather(gradient.norm().view(1))
    size = len(norms)
    pieces = yield AllToAll([piece.contiguous() for piece in gradient.flatten().tensor_split(size)])
    state["seen"] = torch.stack([piece.sum() for piece in pieces])
    total = yield Sum(gradient / torch.cat(norms).max())
    return total


def gradient_of(rank: int) -> torch.Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(rank))


@pytest.mark.parametrize("compressor", [none, three_rounds], ids=lambda found: found.name)
@pytest.mark.parametrize("eager", [True, False])
def test_both_drivers_give_the_same_bits(comm, compressor, eager):
    simulated_states = [{} for _ in range(comm.size)]
    simulated = lockstep.reduce(compressor, [gradient_of(r) for r in range(comm.size)], simulated_states)

    state = {}
    generator = compressor(gradient_of(comm.rank), state, At(rank=comm.rank, size=comm.size))
    exchange = Exchange(f"{compressor.name}.{eager}", [generator], comm, GROUPS)
    while eager and not exchange.advance():
        pass
    (result,) = exchange.finish()

    if comm.size <= 2:  # one addition has one order; from three ranks on the network may choose another
        assert torch.equal(result, simulated[comm.rank])
    torch.testing.assert_close(result, simulated[comm.rank], rtol=1e-5, atol=1e-6)
    everywhere = comm.gather_async(f"same.{compressor.name}.{eager}", result).wait()
    assert all(torch.equal(other, everywhere[0]) for other in everywhere)
    assert all(torch.equal(state[key], simulated_states[comm.rank][key]) for key in state)


def test_exchanges_overlap_whatever_their_order(comm):
    gradients = [gradient_of(10 * k + comm.rank) for k in range(4)]
    order = sorted(range(4), key=lambda k: (k + comm.rank) % 4)
    generators = {k: three_rounds(gradients[k], {}, At(rank=comm.rank, size=comm.size)) for k in order}
    exchanges = {k: Exchange(f"overlap.{k}", [generators[k]], comm, GROUPS) for k in order}
    under_way = list(exchanges.values())
    while under_way:  # every one must be moved: another rank may be waiting for any of them
        under_way = [exchange for exchange in under_way if not exchange.advance()]
        time.sleep(1e-4)  # Horovod's threads need the cores
    for k in range(4):
        expected = lockstep.reduce(
            three_rounds, [gradient_of(10 * k + r) for r in range(comm.size)], [{} for _ in range(comm.size)]
        )
        torch.testing.assert_close(exchanges[k].finish()[0], expected[comm.rank], rtol=1e-5, atol=1e-6)


def test_bytes_are_counted(comm):
    """A norm is gathered, halves are exchanged, 30 numbers are summed."""
    exchange = Exchange("bytes", [three_rounds(gradient_of(comm.rank), {}, At())], comm, GROUPS)
    exchange.finish()
    others, own = comm.size - 1, gradient_of(0).flatten().tensor_split(comm.size)[comm.rank].nbytes
    assert exchange.payload_bytes == 4 + 120 + 120
    assert exchange.sent_bytes == pytest.approx(4 * others + 120 - own + 2 * others / comm.size * 120)


@compressor(groups=("node", "across"), dense=True)
def over_node_then_across(gradient, state, at):
    within = yield Sum(gradient, "node")
    return (yield Sum(within, "across"))


def test_a_compressor_gets_the_groups_that_it_names(comm):
    """What comes back is the sum of the nodes' sums."""
    ranks = mesh_of(comm)
    parameters = {"weight": torch.nn.Parameter(torch.zeros(3))}
    groups = {"world": ranks.world, "node": ranks.node, "across": ranks.across}
    plan = policy.plan(parameters, ["weight"], 1000, over_node_then_across)
    reducer = Reducer(parameters, plan, Route(comm, groups, NoTrace()))
    reducer.start()
    reducer.last_pass()
    (parameters["weight"] * (comm.rank + 1.0)).sum().backward()
    reducer.finish()
    assert parameters["weight"].grad.tolist() == [sum(r + 1.0 for r in range(comm.size))] * 3


def test_what_must_be_the_same_everywhere(comm):
    comm.require_same("number of layers", 4)
    if comm.size > 1:
        with pytest.raises(UserError, match=f"rank {comm.size - 1} has another corpus than rank 0"):
            comm.require_same("corpus", "mine" if comm.rank == comm.size - 1 else "yours")
