"""Buckets and the lockstep driver: pure logic, no Horovod."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hvd_llm import mesh
from hvd_llm.comm import WORLD
from hvd_llm.comm.solo import Solo
from hvd_llm.compress import registry
from hvd_llm.compress.base import AllToAll, At, Gather, Sum, compressor
from hvd_llm.compress.none import none
from hvd_llm.errors import UserError
from hvd_llm.reduce import lockstep, policy
from hvd_llm.reduce.buckets import allocate, readiness
from hvd_llm.reduce.exchange import Exchange
from hvd_llm.reduce.policy import Planned
from hvd_llm.reduce.pricing import price, rehearse
from hvd_llm.reduce.reducer import Reducer
from hvd_llm.reduce.sender import Route, Sender
from hvd_llm.trace import NoTrace


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 60))
def test_a_plan_keeps_order_and_size(sizes, limit):
    named = {str(i): torch.empty(size, dtype=torch.uint8) for i, size in enumerate(sizes)}
    cuts = policy.cut(named, list(named), limit, lambda name: "")
    assert [name for cut in cuts for name in cut] == list(named)
    assert all(cut and (len(cut) == 1 or sum(named[name].nbytes for name in cut) <= limit) for cut in cuts)
    for cut, following in pairwise(cuts):  # no bucket is cut without need
        assert sum(named[name].nbytes for name in cut) + named[following[0]].nbytes > limit


def test_buckets_are_flat_and_of_one_dtype():
    parameters = {
        "a": nn.Parameter(torch.zeros(2, 3)),
        "b": nn.Parameter(torch.zeros(4, dtype=torch.bfloat16)),
        "c": nn.Parameter(torch.zeros(5)),
    }
    plan = policy.plan(parameters, ["c", "b", "a"], 1000, none)
    buckets = allocate(parameters, plan, Solo().allocate)
    assert [list(bucket.views) for bucket in buckets] == [["b"], ["c", "a"]]
    for bucket in buckets:
        bucket.flat.fill_(1)
        assert all(view.eq(1).all() for view in bucket.views.values())
        assert sum(view.numel() for view in bucket.views.values()) == bucket.flat.numel()


def test_readiness_is_the_order_of_a_real_backward_pass():
    first, last, unused = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    parameters = {"unused": unused.weight, "first": first.weight, "last": last.weight}
    seconds = readiness(parameters, lambda: last(first(torch.ones(1, 2))).sum().backward())
    assert list(seconds) == ["last", "first", "unused"]
    assert 0 < seconds["last"] < seconds["first"] < seconds["unused"]
    assert all(parameter.grad is None for parameter in parameters.values())


def test_gradients_of_several_passes_add_up_in_their_buckets():
    torch.manual_seed(0)
    model, reference = nn.Linear(3, 2), nn.Linear(3, 2)
    reference.load_state_dict(model.state_dict())
    parameters = dict(model.named_parameters()) | {"unused": nn.Parameter(torch.ones(3))}
    plan = policy.plan(parameters, list(parameters), 16, none)
    reducer = Reducer(parameters, plan, Route(Solo(), {"world": WORLD}, NoTrace()))
    for _ in range(3):  # three steps of two passes each
        inputs = torch.randn(2, 4, 3)
        reducer.start()
        model(inputs[0]).square().sum().backward()
        reducer.last_pass()
        model(inputs[1]).square().sum().backward()
        reducer.finish()
        reference.zero_grad()
        sum(reference(part).square().sum() for part in inputs).backward()
        assert parameters["unused"].grad.eq(0).all()
        for mine, other in zip(model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad)
        homes = [bucket.flat.untyped_storage().data_ptr() for bucket in reducer.buckets]
        assert all(p.grad.untyped_storage().data_ptr() in homes for p in parameters.values())


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7, 64])
def test_lockstep_answers_every_request(ranks):
    def asks_everything(gradient, state, at):
        (gathered,) = [(yield Gather(gradient[:1]))]
        received = yield AllToAll([gradient[:1] * r for r in range(ranks)])
        state["received"] = torch.cat(received)
        state["gathered"] = torch.cat(gathered)
        return (yield Sum(gradient))

    states = [{} for _ in range(ranks)]
    results = lockstep.reduce(
        compressor(asks_everything), [torch.full((3,), float(r + 1)) for r in range(ranks)], states
    )
    everyone = [float(r + 1) for r in range(ranks)]
    for rank in range(ranks):
        assert results[rank].tolist() == [sum(everyone)] * 3
        assert states[rank]["gathered"].tolist() == everyone
        assert states[rank]["received"].tolist() == [value * rank for value in everyone]
    assert len({result.data_ptr() for result in results}) == ranks, "ranks share a tensor"


def test_lockstep_ranks_of_a_group_answer_each_other():
    """Six ranks on hosts of three; those that ask less end before the others."""

    def asks_groups(gradient, state, at):
        state["node"] = torch.cat((yield Gather(gradient[:1], "node")))
        for _ in range(at.within("node").rank):
            state["across"] = torch.cat((yield Gather(gradient[:1], "across")))
        assert at.groups == {"world": (at.rank, 6), "node": (at.rank % 3, 3), "across": (at.rank // 3, 2)}
        return gradient

    states = [{} for _ in range(6)]
    lockstep.reduce(compressor(asks_groups), [torch.full((2,), float(r)) for r in range(6)], states, node_size=3)
    assert [state["node"].tolist() for state in states] == [[0, 1, 2]] * 3 + [[3, 4, 5]] * 3
    assert [state["across"].tolist() for state in states if "across" in state] == [[1, 4], [2, 5]] * 2


def test_lockstep_sees_ranks_that_wait_for_each_other_in_vain():
    def disagree(gradient, state, at):
        return (yield Sum(gradient, "node" if at.rank else "world"))

    with pytest.raises(AssertionError, match="ask for different things"):
        lockstep.reduce(compressor(disagree), [torch.zeros(1)] * 2, [{}, {}])


def test_bfloat16_is_summed_in_float32_in_lockstep_too():
    parts = [torch.tensor([1.0], dtype=torch.bfloat16)] + [torch.tensor([2**-8], dtype=torch.bfloat16)] * 8
    (result, *_) = lockstep.reduce(none, [part.clone() for part in parts], [{} for _ in parts])
    assert result.item() == 1 + 8 * 2**-8


@pytest.mark.parametrize(("size", "pp", "tp"), [(1, 1, 1), (4, 1, 1), (8, 2, 2), (12, 3, 2), (6, 1, 3)])
def test_a_mesh_covers_every_rank_once_per_axis(size, pp, tp):
    meshes = [mesh.build(rank, ["host"] * size, pp, tp) for rank in range(size)]
    for axis, length in (("dp", size // pp // tp), ("pp", pp), ("tp", tp)):
        groups = {getattr(ranks, axis) for ranks in meshes}
        assert sorted(rank for group in groups for rank in group.ranks) == list(range(size))
        assert {len(group.ranks) for group in groups} == {length}
    assert len({ranks.groups for ranks in meshes}) == 1, "every rank must register the same groups"
    assert meshes[0].tp.ranks == tuple(range(tp)), "tp is innermost"


def test_hosts_and_what_goes_across_them():
    meshes = [mesh.build(rank, ["a", "b", "a", "b", "a"]) for rank in range(5)]
    assert [ranks.node.ranks for ranks in meshes] == [(0, 2, 4), (1, 3), (0, 2, 4), (1, 3), (0, 2, 4)]
    assert [ranks.across.ranks for ranks in meshes] == [(0, 1), (0, 1), (2, 3), (2, 3), (4,)]


def test_hosts_with_unlike_numbers_of_ranks_have_no_groups_across():
    ranks = mesh.build(0, ["a", "a", "b"])
    assert [group.ranks for group in ranks.named(["node"])] == [(0, 1), (2,)]
    with pytest.raises(UserError, match="equally many ranks on every host, not 1 to 2"):
        ranks.named(["node", "across"])


def test_a_mesh_that_does_not_fit_names_the_nearest_that_does():
    with pytest.raises(UserError, match=r"6 ranks .* pp = 2 x tp = 2; the nearest product is 3"):
        mesh.build(0, ["host"] * 6, pp=2, tp=2)


def test_a_late_answer_holds_up_no_other_bucket():
    """What is sent by rows takes two rounds: the second of one goes out while the first of another is waited for."""

    class Late:
        def __init__(self, handle, until):
            self._handle, self._until = handle, until

        def ready(self):
            return self._until()

        def wait(self):
            assert self._until(), "waited for the first bucket, while the second could go on"
            return self._handle.wait()

    class Recording(Solo):
        def gather_async(self, name, tensor, group=WORLD, lengths=None):
            begun.append(name)
            until = (lambda: "bucket.1.1.0" in begun) if name.startswith("bucket.0") else (lambda: True)
            return Late(super().gather_async(name, tensor, group, lengths), until)

    begun: list[str] = []
    parameters = {name: nn.Parameter(torch.zeros(64, 8)) for name in "ab"}
    plan = [Planned((name,), registry.find("rows")) for name in "ab"]
    sender = Sender("bucket", parameters, plan, Route(Recording(), {"world": WORLD}, NoTrace()), {})
    for bucket in sender.buckets:
        bucket.flat.zero_()
        bucket.flat[:8] = 1
        sender.send(bucket, step=0)
    sender.finish(sender.buckets)
    assert "bucket.0.1.0" in begun


@pytest.mark.parametrize(
    "name", ["none", "bf16", "int8", "int8(feedback=1)", "onebit", "powersgd", "powersgd(feedback=0)"]
)
def test_results_lie_in_the_bucket(name):
    """They would be copied there."""
    found, state = registry.find(name), {}
    gradient = torch.randn(2, 64, 64)
    gradient = gradient if found.takes == "matrices" else gradient.view(-1)
    for _ in range(2):
        (result,) = Exchange("w", [found(gradient, state, At())], Solo(), {"world": WORLD}).finish()
        assert result.data_ptr() == gradient.data_ptr()
        kept = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
        assert gradient.untyped_storage().data_ptr() not in kept


def test_a_result_of_another_shape_is_found_before_training():
    @compressor
    def short(gradient, state, at):
        return (yield Sum(gradient))[:5]

    @compressor
    def forgetful(gradient, state, at):
        yield Sum(gradient)

    with pytest.raises(UserError, match=r"short returns \[5\] for a gradient of \[10000\]"):
        rehearse(short, 2, 1)
    with pytest.raises(UserError, match="forgetful returns None"):
        rehearse(forgetful, 2, 1)


def test_a_result_that_only_fits_is_found_too():
    """A transposed matrix has as many elements; and a generator may return one in some steps only."""

    @compressor(takes="matrices")
    def turned(gradient, state, at):
        total = yield Sum(gradient)
        return total.mT.contiguous() if at.step in (0, 3) else total

    with pytest.raises(UserError, match=r"turned returns \[2, 48, 64\] for a gradient of \[2, 64, 48\]"):
        rehearse(turned, 2, 1)
    parameter = nn.Parameter(torch.ones(64, 48))
    sender = Sender(
        "bucket", {"w": parameter}, [Planned(("w",), turned)], Route(Solo(), {"world": WORLD}, NoTrace()), {}
    )
    for step in (1, 2):
        sender.send(sender.buckets[0], step)
        sender.finish(sender.buckets)
    sender.send(sender.buckets[0], 3)
    with pytest.raises(UserError, match=r"turned returns \[1, 48, 64\] for a gradient of \[1, 64, 48\]"):
        sender.finish(sender.buckets)


def test_a_result_in_the_bucket_may_be_read_in_another_way():
    """A square matrix transposed is of the same shape and begins at the same place."""

    @compressor(takes="matrices")
    def turned(gradient, state, at):
        return (yield Sum(gradient)).mT

    route = Route(Solo(), {"world": WORLD}, NoTrace())
    sender = Sender("bucket", {"w": nn.Parameter(torch.zeros(3, 3))}, [Planned(("w",), turned)], route, {})
    given = torch.arange(9.0)
    sender.buckets[0].flat.copy_(given)
    sender.send(sender.buckets[0], step=0)
    sender.finish(sender.buckets)
    assert torch.equal(sender.buckets[0].views["w"], given.view(3, 3).T)


def test_what_a_compressor_raises_says_whose_it_is():
    @compressor
    def breaks(gradient, state, at):
        total = yield Sum(gradient)
        raise ValueError(f"{at.step} is too much")
        return total

    parameter = nn.Parameter(torch.ones(64, 48))
    sender = Sender(
        "bucket", {"w": parameter}, [Planned(("w",), breaks)], Route(Solo(), {"world": WORLD}, NoTrace()), {}
    )
    sender.send(sender.buckets[0], 3)
    with pytest.raises(ValueError, match="3 is too much") as caught:
        sender.finish(sender.buckets)
    assert caught.value.__notes__ == ["It was raised in compressor breaks, step 3."]


def test_who_runs_other_compressors_gets_a_result_of_each():
    @compressor(feedback=1)
    def twice(gradient, state, at):
        coarse = yield from registry.find("int4(feedback=0)")(gradient.clone(), {}, at)
        gradient -= coarse
        fine = yield from registry.find("int4(feedback=0)")(gradient.clone(), {}, at)
        gradient -= fine
        return coarse + fine

    given, states = torch.randn(1000), [{}]
    (result,) = lockstep.reduce(twice, [given.clone()], states)
    torch.testing.assert_close(result + states[0]["error"], given)


def test_sums_travel_together_if_they_are_of_one_type():
    """As many bytes as are priced: P of two matrices in float16, beside a matrix that is sent as it is; Q of both."""

    class Recording(Solo):
        def sum_async(self, name, tensor, group=WORLD):
            sent.append((tensor.dtype, tensor.numel()))
            return super().sum_async(name, tensor, group)

    found, shapes = registry.find("powersgd(rank=2)"), [(1, 40, 24), (1, 30, 24), (1, 2, 2)]
    states: list[dict] = [{} for _ in shapes]
    for expected in ([(torch.float32, 144)], [(torch.float16, 140), (torch.float32, 4)]):
        given, sent = [torch.randn(shape) for shape in shapes], []
        generators = [found(each, state, At()) for each, state in zip(given, states, strict=True)]
        exchange = Exchange("w", generators, Recording(), {"world": WORLD})
        assert [result.shape for result in exchange.finish()] == [each.shape for each in given]
        assert sent == [*expected, (torch.float32, 96)]
        assert exchange.rounds == 2
    priced = price(found, given, 2, states)
    assert [operation.sent_bytes for operation in priced.operations] == [140 * 2, 4 * 4, 96 * 4]


def test_vectors_are_sent_as_they_are():
    parameters = {"weight": torch.zeros(8, 8), "bias": torch.zeros(8), "scale": torch.zeros(())}
    for name in ("powersgd", "int4", "topk"):
        planned = policy.plan(parameters, list(parameters), 1000, registry.find(name))
        chosen = {parameter: each.compressor.name for each in planned for parameter in each.names}
        assert chosen == {"weight": name, "bias": "none", "scale": "none"}
