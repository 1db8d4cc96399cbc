"""What every compressor must do: one suite for all that are installed, among simulated ranks and among real ones."""

import pytest
import torch
from worlds import Real, Simulated, node_size, possible

from hvd_llm.compress import registry, two_phase
from hvd_llm.compress.base import At, Compressor
from hvd_llm.compress.none import none
from hvd_llm.compress.twobit import STRONG, WEAK
from hvd_llm.launcher import Launch
from hvd_llm.reduce import lockstep
from hvd_llm.reduce.buckets import Bucket, Segment
from hvd_llm.reduce.memory import Memory, take_over
from hvd_llm.reduce.pricing import price

SHAPES = {"flat": (5001,), "matrices": (3, 40, 24)}
STEPS = 4
REAL = Launch.from_environment().by is not None  # each real rank would only repeat what simulated ones do
SIMULATED = [1, 2, 3, 4, 7, "7 on one host", 64]
ALONE = pytest.mark.skipif(REAL, reason="simulated ranks need no real ones")
WRAPPED = [f"hierarchical(across={name})" for name in ("none", "bf16", "topk", "dgc", "randomk", "powersgd", "adasum")]


@pytest.fixture(params=["real"] if REAL else [*SIMULATED, "real"])
def world(request, comm):
    if request.param == "real":
        return Real(comm)
    return Simulated(7, one_host=True) if request.param == "7 on one host" else Simulated(request.param)


@pytest.fixture(params=[*registry.names(), *WRAPPED])
def compressor(request):
    found = registry.find(request.param)
    if "world" in request.fixturenames:
        world = request.getfixturevalue("world")
        possible(found, world.size, world.node_size)
    return found


@pytest.fixture
def summing(compressor):
    if not compressor.sums:
        pytest.skip(f"{compressor} does not sum")
    return lossless(compressor)


def lossless(compressor):
    """The compressor with whatever it has of error feedback: nothing is forgotten."""
    options = {"feedback": 1.0, "momentum": 0.0}
    found = {name: options[name] for name in compressor.defaults if name in options}
    inner = {name: lossless(option) for name, option in compressor.defaults.items() if isinstance(option, Compressor)}
    return compressor.with_options(**inner, **found)


def gradient(compressor, rank: int, step: int = 0) -> torch.Tensor:
    """Numbers of very unlike sizes, as gradients are."""
    random = torch.Generator().manual_seed(1000 * step + rank)
    shape = SHAPES[compressor.takes]
    return torch.randn(shape, generator=random) * torch.rand(shape, generator=random).pow(4) * 1e-3


def run(world, compressor, states, steps=range(STEPS)):
    """Several steps; the results of each, for each of the world's ranks."""
    return [
        world.reduce(compressor, [gradient(compressor, r, step) for r in world.ranks], states, At("weight", step=step))
        for step in steps
    ]


def test_what_is_sent_and_what_is_kept_is_the_gradient(world, summing):
    compressor, states = summing, [{} for _ in world.ranks]
    received = sum(results[0].double() for results in run(world, compressor, states))
    nothing = torch.zeros(SHAPES[compressor.takes])
    kept = world.total([state.get("error", nothing).double() for state in states])
    given = sum(gradient(compressor, r, step).double() for r in range(world.size) for step in range(STEPS))
    torch.testing.assert_close(received + kept, given, rtol=1e-5, atol=1e-6 * float(given.abs().max()))


@ALONE
def test_gradients_may_be_of_double_precision(summing):
    """What is kept of them, and what comes of that, is not; training in it is in test_compressed_training.py."""
    compressor, states, received, given = summing, [{}, {}], 0, 0
    for step in range(STEPS):
        parts = [gradient(compressor, rank, step).double() for rank in range(2)]
        given += sum(parts)
        results = lockstep.reduce(compressor, [part.clone() for part in parts], states, At("weight", step=step))
        assert torch.equal(*results)
        received += results[0]
    kept = sum(state.get("error", torch.zeros(1)) for state in states)
    given = given.to((received + kept).dtype)
    torch.testing.assert_close(received + kept, given, rtol=1e-5, atol=1e-6 * float(given.abs().max()))


def test_every_rank_gets_the_same_bits_every_time(world, compressor):
    states, again = ([{} for _ in world.ranks] for _ in range(2))
    for results, repeated in zip(run(world, compressor, states), run(world, compressor, again), strict=True):
        everywhere = world.everywhere([result.contiguous() for result in results])
        assert all(torch.equal(result, everywhere[0]) for result in everywhere)
        assert all(torch.equal(result, other) for result, other in zip(results, repeated, strict=True))
    for slot in states[0]:
        values = world.everywhere([state[slot] for state in states])
        same = all(torch.equal(value, values[0]) for value in values)
        assert same or slot not in compressor.same


def test_state_is_replaced_and_never_written_into(world, compressor):
    states = [{} for _ in world.ranks]
    run(world, compressor, states, range(2))
    held = [dict(state) for state in states]
    copies = [{slot: value.clone() for slot, value in state.items()} for state in states]
    run(world, compressor, states, range(2, 4))
    for state, copy in zip(held, copies, strict=True):
        assert all(torch.equal(value, copy[slot]) for slot, value in state.items())


def test_a_step_that_is_not_finite_on_one_rank_is_so_on_all(world, compressor):
    """The reducer fills a bucket with NaN if anything in it is not finite."""
    last = world.size - 1
    parts = [gradient(compressor, r) for r in world.ranks]
    parts = [part * (torch.nan if r == last else 1) for r, part in zip(world.ranks, parts, strict=True)]
    for result in world.reduce(compressor, parts, [{} for _ in world.ranks], At("weight")):
        assert not result.isfinite().any() if compressor.takes == "matrices" else not result.sum().isfinite()


def test_a_checkpoint_in_the_middle_changes_nothing(world, compressor):
    """State goes by parameter into a checkpoint, through another division into buckets, and back."""
    states = [{} for _ in world.ranks]
    before = run(world, compressor, states, range(2))
    assert before
    loaded = []
    for state in states:
        memory = Memory(_buckets(compressor, [3]), {})
        memory.draft(0)[0].update(state)
        memory.keep()
        divided = Memory(_buckets(compressor, [1, 2]), _copy(memory.by_parameter()))
        loaded.append(Memory(_buckets(compressor, [3]), _copy(divided.by_parameter())).draft(0)[0])
        assert loaded[-1].keys() == state.keys()
    straight, resumed = (run(world, compressor, which, range(2, 4)) for which in (states, loaded))
    for one, other in zip(straight, resumed, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _copy(named):
    return {name: {slot: value.clone() for slot, value in slots.items()} for name, slots in named.items()}


def _buckets(compressor, counts: list[int]) -> list[Bucket]:
    """Three parameters, so many in each bucket."""
    tensor = torch.zeros(SHAPES[compressor.takes])
    stacked = compressor.takes == "matrices"
    pieces = list(tensor.split(1) if stacked else tensor.split([2000, 1001, 2000]))
    buckets: list[Bucket] = []
    for count in counts:
        done = sum(len(bucket.views) for bucket in buckets)
        mine = pieces[done : done + count]
        part = torch.cat(mine)
        views = part.unbind(0) if stacked else part.split([len(piece) for piece in mine])
        named = {f"layer.{done + i}": view for i, view in enumerate(views)}
        buckets.append(Bucket(len(buckets), part.view(-1), (Segment(compressor, part, named),)))
    return buckets


@ALONE
@pytest.mark.parametrize(("before", "after"), [((4, 2), (6, 3)), ((6, 3), (2, 1)), ((4, 2), (4, 1)), ((4, 4), (4, 2))])
def test_what_was_kept_is_sent_by_other_ranks_on_other_hosts(summing, before, after):
    """Ranks and ranks on a host; a checkpoint between them."""
    compressor, states, received = summing, [], 0
    for index, (size, on_host) in enumerate((before, after)):
        kept = [{"weight": state} for state in states]
        taken = [
            take_over(lambda writer, kept=kept: kept[writer], len(kept), r, size, compressor.same) for r in range(size)
        ]
        states = [named.get("weight", {}) for named in taken]
        for step in range(index * STEPS, (index + 1) * STEPS):
            parts = [gradient(compressor, rank, step) for rank in range(size)]
            received += lockstep.reduce(compressor, parts, states, At("weight", step=step), node_size=on_host)[
                0
            ].double()
    sizes = [before[0]] * STEPS + [after[0]] * STEPS
    given = sum(gradient(compressor, r, step).double() for step, size in enumerate(sizes) for r in range(size))
    rest = sum(state.get("error", torch.zeros(SHAPES[compressor.takes])).double() for state in states)
    torch.testing.assert_close(received + rest, given, rtol=1e-5, atol=1e-6 * float(given.abs().max()))


def test_the_drivers_agree_bit_for_bit(comm, compressor):
    """Every rank simulates all of them; sums it leaves to the network, which adds in an order of its own."""
    possible(compressor, comm.size, node_size(comm.size))
    real, simulated = [{}], [{} for _ in range(comm.size)]
    for step in range(STEPS):
        (result,) = Real(comm).reduce(compressor, [gradient(compressor, comm.rank, step)], real, At("w", step=step))
        everyone = [gradient(compressor, r, step) for r in range(comm.size)]
        expected = lockstep.reduce(
            compressor,
            everyone,
            simulated,
            At("w", step=step),
            add=lambda tensors: _network_sum(comm, tensors),
            node_size=node_size(comm.size),
        )
        assert torch.equal(result, expected[comm.rank])
    assert real[0].keys() == simulated[comm.rank].keys()
    assert all(torch.equal(value, simulated[comm.rank][slot]) for slot, value in real[0].items())


def _network_sum(comm, tensors):
    """Of two, there is one sum."""
    if len(tensors) <= 2:
        return lockstep.in_rank_order([tensor.contiguous() for tensor in tensors])
    return comm.sum("lockstep", tensors[comm.rank].contiguous().clone())


@ALONE
def test_what_comes_out_is_close_to_the_sum_over_time(summing):
    """A constant gradient: with error feedback the mean of what came back goes to the sum."""
    compressor = summing
    steps, states = 400, [{}, {}]
    total = torch.zeros(SHAPES[compressor.takes])
    for step in range(steps):
        parts = [gradient(compressor, rank) for rank in range(2)]
        total += lockstep.reduce(compressor, parts, states, At("weight", step=step))[0]
    expected = gradient(compressor, 0) + gradient(compressor, 1)
    assert float((total / steps - expected).norm() / expected.norm()) < 0.3


@ALONE
def test_what_is_kept_stays_small(compressor):
    """An error that grew from step to step would come back as noise."""
    compressor = lossless(compressor)
    states, steps = [{}, {}], 300
    for step in range(steps):
        parts = [gradient(compressor, rank, step) for rank in range(2)]
        lockstep.reduce(compressor, parts, states, At("weight", step=step))
    one = float(gradient(compressor, 0).norm())
    assert float(states[0].get("error", torch.zeros(1)).norm()) < 70 * one


@ALONE
def test_a_short_last_block_is_as_good_as_the_others():
    """Of a constant gradient, every element comes back at its full size; signs have the block's own mean magnitude."""
    for name in ("int8", "fp8", "int4", "onebit"):
        (total,) = lockstep.reduce(registry.find(name), [torch.ones(4100)], [{}])
        torch.testing.assert_close(total, torch.ones(4100), rtol=0.01, atol=0)
    uneven = torch.cat([torch.ones(4096), torch.tensor([1.0, -1.0, 1.0, 5.0])])
    for name, last in (("onebit", [2.0, -2.0, 2.0, 2.0]), ("twobit", [2 * WEAK, -2 * WEAK, 2 * WEAK, 2 * STRONG])):
        (total,) = lockstep.reduce(registry.find(name), [uneven.clone()], [{}])
        torch.testing.assert_close(total[4096:], torch.tensor(last))


@ALONE
@pytest.mark.parametrize(("shape", "left"), [("normal", 0.118), ("laplace", 0.25), ("one of 256", 0.999)])
def test_two_bits_leave_what_max_says_of_normal_numbers_and_never_all(shape, left):
    """Share of the mean square that is left over: 0.1175 for normal numbers (Max 1960, table I)."""
    random = torch.Generator().manual_seed(0)
    given = torch.randn(2**18, generator=random)
    if shape == "laplace":
        given *= torch.rand(2**18, generator=random).log().neg().mul(2).sqrt()
    if shape == "one of 256":
        given = torch.zeros(2**18).index_fill(0, torch.arange(0, 2**18, 256), 3.0)
    (total,) = lockstep.reduce(registry.find("twobit"), [given.clone()], [{}])
    assert float((total - given).square().sum() / given.square().sum()) < left


@ALONE
@pytest.mark.parametrize("name", ["bf16", "int8", "fp8", "int4", "twobit", "onebit", "int8(block=96)"])
def test_the_numbers_do_not_depend_on_how_many_are_coded_at_a_time(name, monkeypatch):
    found, outcomes = lossless(registry.find(name)), []
    for chunk in (two_phase.CPU_CHUNK, 1024, 1):
        monkeypatch.setattr(two_phase, "CPU_CHUNK", chunk)
        states: list[dict] = [{} for _ in range(3)]
        results = run(Simulated(3), found, states)
        outcomes.append([*(result for step in results for result in step), *(state["error"] for state in states)])
    for other in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcomes[0], other, strict=True))


@ALONE
@pytest.mark.parametrize("size", [1e-12, 1, 1e12])
def test_matrices_of_low_rank_come_back_whole(size):
    """In the first step; then but for the few bits of P, whatever their size is."""
    random = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 3, 40, 4, generator=random), torch.randn(2, 3, 24, 4, generator=random)
    right[1] = right[0]  # or the sum would be of rank 8
    parts, found = size * left @ right.mT, registry.find("powersgd(rank=4, feedback=0)")
    states: list[dict] = [{}, {}]
    for most in (1e-5, 2e-3, 2e-3):
        total = lockstep.reduce(found, [part.clone() for part in parts], states)[0]
        assert float((total - parts.sum(0)).norm() / parts.sum(0).norm()) < most


@ALONE
@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("size", [2, 3, 5, 10])
def test_fewer_rows_than_the_rank_leave_no_column_that_grows(size, alike):
    """What is left of a column that had nothing to do is rounding; the next gradient may point there."""
    random = torch.Generator().manual_seed(0)
    found, states = registry.find("powersgd(rank=8)"), [{} for _ in range(size)]
    for step in range(40):
        parts = [torch.zeros(1, 40, 24) for _ in states]
        for part in parts:
            rows = torch.randint(40, (2,), generator=random)
            part[0, rows] = torch.randn(2, 24, generator=random) * 10.0 ** (step % 5)
        if alike:  # what all say adds up to most
            parts = [parts[0].clone() for _ in parts]
        assert lockstep.reduce(found, parts, states, At("weight", step=step))[0].isfinite().all(), step


@ALONE
def test_codes_are_rounded_to_nearest():
    given, step = torch.linspace(-1, 1, 511), 1 / 127
    (total,) = lockstep.reduce(registry.find("int8"), [given.clone()], [{}])
    assert float((total - given).abs().max()) <= step / 2 * 1.0001
    torch.testing.assert_close(total, (given / step).round() * step)


@ALONE
def test_rounding_at_random_is_right_in_the_mean():
    given, draws = torch.linspace(-1, 1, 512), 400
    found = registry.find("int8(stochastic=true)")
    drawn = [lockstep.reduce(found, [given.clone()], [{}], At("w", step=step))[0] for step in range(draws)]
    assert not torch.equal(drawn[0], drawn[1])
    step_of_codes = 1 / 127
    assert float((torch.stack(drawn).mean(0) - given).abs().max()) < 0.15 * step_of_codes


@ALONE
@pytest.mark.parametrize("size", [1, 2, 4, 64])
def test_a_price_needs_no_other_ranks(compressor, size):
    """Bytes per element stay below those of a plain ring (and some counts), or of everybody's choice gathered."""
    mine = gradient(compressor, 0)
    found = price(compressor, [mine], size)
    if size == 1:
        assert found.sent_bytes == 0
        return
    ring = 2 * (size - 1) / size * mine.nbytes
    gathers = [operation.kind for operation in found.operations] == ["gather"]
    products = 0 if compressor.sums else 2 * size * len(mine) * 3 * 8  # a few float64 for each parameter
    limit = ring * size / 16 if gathers else ring * 1.001 + 8 * size + products
    assert found.sent_bytes < limit, f"of {mine.nbytes} bytes each of {size} ranks sends so many; {ring} in a plain sum"


def test_rows_are_added_up_and_nothing_else_is_sent(world):
    """Ranks have other numbers of rows, one has none; some rows are everybody's."""
    parts = []
    for rank in world.ranks:
        part = torch.zeros(2, 10_000, 8)
        part[:, 3 * rank : 3 * rank + rank % 4] = rank if rank % 2 else -rank
        part[1, 9_000] = 1 if rank else 0
        parts.append(part)
    total = world.total([part.clone() for part in parts])
    found = registry.find("rows")
    for result in world.reduce(found, [part.clone() for part in parts], [{} for _ in world.ranks], At("weight")):
        assert torch.equal(result, total)
    if world.size > 1:
        assert price(found, [parts[-1]], world.size).sent_bytes < 0.05 * price(none, [parts[-1]], world.size).sent_bytes


def test_many_rows_are_added_as_a_table(world):
    parts = [torch.full((1, 50, 4), float(rank + 1)) for rank in world.ranks]
    total = world.total([part.clone() for part in parts])
    for result in world.reduce(registry.find("rows"), parts, [{} for _ in world.ranks], At("weight")):
        assert torch.equal(result, total)


@ALONE
@pytest.mark.parametrize("name", ["none", "int4", "topk", "powersgd"])
def test_hosts_send_less_if_their_ranks_add_up_first(name):
    """8 hosts of 8 ranks: what a rank sends to other hosts is priced at an eighth of what a host of one rank sends."""
    alone, together = registry.find(name), registry.find(f"hierarchical(across={name})")
    mine = torch.randn(8, 256, 256) if alone.takes == "matrices" else torch.randn(2**19)
    found = price(together, [mine], 64, node_size=8)
    assert found.sent_bytes == pytest.approx(price(alone, [mine], 8).sent_bytes / 8, rel=0.02)
    assert found.node_bytes == pytest.approx(2 * 7 / 8 * mine.nbytes, rel=0.02)


@ALONE
def test_a_share_of_matrices_may_be_none():
    """Two matrices on hosts of four ranks."""
    found = registry.find("hierarchical(across=powersgd(rank=2))")
    parts = [gradient(found, rank)[:2] for rank in range(8)]
    states = [{} for _ in parts]
    results = lockstep.reduce(found, [part.clone() for part in parts], states, At("weight"), node_size=4)
    assert all(torch.equal(result, results[0]) for result in results)
    assert [bool(state["error"].any()) for state in states] == [True, True, False, False] * 2
    torch.testing.assert_close(results[0] + sum(state["error"] for state in states), sum(parts))
