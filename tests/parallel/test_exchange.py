"""The Horovod driver and the lockstep driver run the same generator and give the same bits."""

import pytest
import torch

from hvd_llm.comm import WORLD
from hvd_llm.compress import registry
from hvd_llm.compress.base import AllToAll, Gather, Sum
from hvd_llm.reduce import lockstep
from hvd_llm.reduce.exchange import Exchange

GROUPS = {"world": WORLD}


def three_rounds(gradient, state):
    """Uses every request there is: norms are gathered, halves are exchanged, the scaled gradient is summed."""
    norms = yield Gather(gradient.norm().view(1))
    size = len(norms)
    pieces = yield AllToAll([piece.contiguous() for piece in gradient.flatten().tensor_split(size)])
    state["seen"] = torch.stack([piece.sum() for piece in pieces])
    total = yield Sum(gradient / torch.cat(norms).max())
    return total


def gradient_of(rank: int) -> torch.Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(rank))


@pytest.mark.parametrize("compressor", [registry.find("none"), three_rounds], ids=["none", "three_rounds"])
@pytest.mark.parametrize("eager", [True, False])
def test_both_drivers_give_the_same_bits(comm, compressor, eager):
    simulated_states = [{} for _ in range(comm.size)]
    simulated = lockstep.reduce(compressor, [gradient_of(r) for r in range(comm.size)], simulated_states)

    state = {}
    exchange = Exchange(f"{compressor.__name__}.{eager}", compressor(gradient_of(comm.rank), state), comm, GROUPS)
    while eager and not exchange.advance():
        pass
    result = exchange.finish()

    if comm.size <= 2:  # one addition has one order; from three ranks on the network may choose another
        assert torch.equal(result, simulated[comm.rank])
    torch.testing.assert_close(result, simulated[comm.rank], rtol=1e-6, atol=1e-7)
    everywhere = comm.gather_async(f"same.{compressor.__name__}.{eager}", result).wait()
    assert all(torch.equal(other, everywhere[0]) for other in everywhere)
    assert all(torch.equal(state[key], simulated_states[comm.rank][key]) for key in state)


def test_exchanges_overlap_whatever_their_order(comm):
    gradients = [gradient_of(10 * k + comm.rank) for k in range(4)]
    order = sorted(range(4), key=lambda k: (k + comm.rank) % 4)
    exchanges = {k: Exchange(f"overlap.{k}", three_rounds(gradients[k], {}), comm, GROUPS) for k in order}
    under_way = list(exchanges.values())
    while under_way:  # every one must be moved: another rank may be waiting for any of them
        under_way = [exchange for exchange in under_way if not exchange.advance()]
    for k in range(4):
        expected = lockstep.reduce(
            three_rounds, [gradient_of(10 * k + r) for r in range(comm.size)], [{} for _ in range(comm.size)]
        )
        torch.testing.assert_close(exchanges[k].finish(), expected[comm.rank], rtol=1e-6, atol=1e-7)


def test_payload_is_counted(comm):
    exchange = Exchange("payload", registry.find("none")(torch.zeros(1000), {}), comm, GROUPS)
    exchange.finish()
    assert exchange.payload_bytes == 4000
