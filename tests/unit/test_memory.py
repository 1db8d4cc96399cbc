"""What compressors keep between steps, and who takes it over: on other ranks, or as another compressor."""

import pytest
import torch
from torch import nn

from hvd_llm.comm import WORLD
from hvd_llm.comm.solo import Solo
from hvd_llm.compress import registry
from hvd_llm.compress.none import none
from hvd_llm.reduce import lockstep, policy
from hvd_llm.reduce.buckets import allocate
from hvd_llm.reduce.memory import Memory, take_over
from hvd_llm.reduce.policy import Planned
from hvd_llm.reduce.sender import Route, Sender
from hvd_llm.reduce.turns import InTurn
from hvd_llm.trace import NoTrace


def _memory(parameters, compressor, kept=None) -> Memory:
    plan = [Planned(tuple(parameters), compressor)]
    return Memory(allocate(parameters, plan, Solo().allocate), kept or {})


@pytest.mark.parametrize("writers", [1, 2, 3, 4])
@pytest.mark.parametrize("readers", [1, 2, 3, 4, 7])
def test_errors_keep_their_sum_when_the_number_of_ranks_changes(writers, readers):
    random = torch.Generator().manual_seed(0)
    errors = [torch.randn(5, generator=random, dtype=torch.float64) for _ in range(writers)]
    kept = [{"weight": {"error": error, "q": torch.ones(2)}} for error in errors]
    taken = [take_over(lambda writer: kept[writer], writers, rank, readers, ["q"]) for rank in range(readers)]
    torch.testing.assert_close(sum(named["weight"]["error"] for named in taken), sum(errors))
    assert all(named["weight"]["q"].tolist() == [1, 1] for named in taken)


def test_a_compressor_takes_up_only_what_it_kept():
    """`auto` may choose another one for a parameter when a run is resumed on other ranks."""
    parameters = {"weight": nn.Parameter(torch.zeros(8, 8))}
    kept = {"weight": {"powersgd.q": torch.ones(1, 8, 4), "error": torch.ones(8, 8)}}
    expected = {"powersgd": {"q", "error"}, "onebit": {"error"}, "int8": set(), "none": set()}
    for name, slots in expected.items():
        buckets = allocate(parameters, policy.plan(parameters, ["weight"], 1000, registry.find(name)), Solo().allocate)
        (state,) = Memory(buckets, kept).draft(0)
        assert state.keys() == slots


def test_what_other_options_of_a_compressor_kept_is_not_joined():
    parameters = {name: nn.Parameter(torch.zeros(64, 64)) for name in "ab"}
    kept = {
        name: {"powersgd.q": torch.ones(1, 64, rank), "error": torch.ones(64, 64)}
        for name, rank in (("a", 4), ("b", 8))
    }
    plan = policy.plan(parameters, ["a", "b"], 1e6, registry.find("powersgd"))
    (state,) = Memory(allocate(parameters, plan, Solo().allocate), kept).draft(0)
    assert state.keys() == {"error"}


@pytest.mark.parametrize("name", ["none", "int8", "powersgd(feedback=0)", "topk"])
def test_errors_that_other_compressors_left_are_sent(name):
    """`auto` may choose one without error feedback: then the errors are added to the first gradient that counts."""
    parameters = {"a": nn.Parameter(torch.zeros(2, 8)), "b": nn.Parameter(torch.zeros(2, 8))}
    kept = {"a": {"error": torch.full((2, 8), 3.0)}}
    route = Route(Solo(), {"world": WORLD}, NoTrace())
    sender = Sender("bucket", parameters, policy.plan(parameters, ["a", "b"], 1000, registry.find(name)), route, kept)
    (bucket,) = sender.buckets
    for counts, expected in ((False, 4.0), (True, 4.0), (True, 1.0)):
        bucket.flat.fill_(1)
        sender.send(bucket, step=0)
        sender.finish([bucket])
        for view, value in ((bucket.views["a"], expected), (bucket.views["b"], 1.0)):
            torch.testing.assert_close(view, torch.full((2, 8), value), rtol=0, atol=0.02)
        if counts:
            sender.memory.keep()
        else:
            sender.memory.drop()
            again = Memory(sender.buckets, sender.memory.by_parameter())
            left = again.unsent(0)
            assert (again.draft(0)[0]["error"] if left is None else left)[: bucket.views["a"].numel()].eq(3).all()
    slots = [kept for slots in sender.memory.by_parameter().values() for kept in slots.items()]
    assert not any(value.any() for key, value in slots if key.endswith("error"))


@pytest.mark.parametrize("name", ["none", "topk", "dgc", "hierarchical(across=dgc)"])
@pytest.mark.parametrize("before", ["dgc", "hierarchical(across=dgc)", "topk"])
def test_whoever_takes_over_sends_what_was_not_sent(before, name):
    """Also if it kept its error itself, and if the one that takes over keeps one, too; on two hosts of two ranks."""
    parts = [torch.randn(8192, generator=torch.Generator().manual_seed(rank)) for rank in range(4)]
    states: list[dict] = [{} for _ in parts]
    first = lockstep.reduce(registry.find(before), [part.clone() for part in parts], states, node_size=2)[0]
    kept, found = [], registry.find(name)
    parameters = {"w": nn.Parameter(torch.zeros(8192))}
    for state in states:
        memory = _memory(parameters, registry.find(before))
        memory.draft(0)[0].update(state)
        memory.keep()
        kept.append(memory.by_parameter())
    unsent = torch.zeros(8192)
    for each in kept:
        memory = _memory(parameters, found, each)
        assert _memory(parameters, found, memory.by_parameter()).by_parameter().keys() == memory.by_parameter().keys()
        left, state = memory.unsent(0), memory.draft(0)[0]
        unsent += (0 if left is None else left) + state.get("error", 0)
    torch.testing.assert_close(unsent, torch.stack(parts).sum(0) - first, rtol=0, atol=1e-4)


def test_hierarchical_takes_up_only_what_was_kept_of_the_same_one():
    """`auto` may send a bucket through another one than before."""
    parameters = {"w": nn.Parameter(torch.zeros(64, 64))}
    memory = _memory(parameters, registry.find("hierarchical(across=powersgd)"))
    memory.draft(0)[0]["q"] = torch.ones(1, 64, 4)
    memory.keep()
    kept = memory.by_parameter()
    assert _memory(parameters, registry.find("hierarchical(across=powersgd)"), kept).draft(0)[0].keys() == {"q"}
    for other in ("hierarchical(across=int4)", "powersgd"):
        assert _memory(parameters, registry.find(other), kept).draft(0)[0].keys() == set()


def test_errors_that_were_left_may_make_a_sum_infinite():
    parameters = {"a": nn.Parameter(torch.zeros(2, 8))}
    route = Route(Solo(), {"world": WORLD}, NoTrace())
    for kept in ({}, {"a": {"error": torch.full((2, 8), 3e38)}}):
        sender = InTurn("bucket", parameters, policy.plan(parameters, ["a"], 1000, none), route, kept)
        sender.buckets[0].flat.fill_(1)
        sender.send(sender.buckets[0], step=0)
        sender.over()
        assert sender.finite() == (not kept)
