"""Ranks that train apart and meet now and then, against the same computed by one process for all of them."""

import time

import pytest
import torch
from small_training import Seen, resumed, saved, settings, trainer

from hvd_llm import checkpoint
from hvd_llm.comm.mute import Mute
from hvd_llm.comm.solo import Solo
from hvd_llm.metrics import Silence
from hvd_llm.train import _loop

DILOCO = {"every": 5, "outer_lr": 0.7, "outer_momentum": 0.9}
STREAMING = {"every": 6, "fragments": 3, "delay": 2, "mix": 0.5, "outer_lr": 0.7, "outer_momentum": 0.9}


@pytest.mark.parametrize(("lr", "momentum"), [(1.0, 0.0), (0.7, 0.9)], ids=["local SGD", "DiLoCo"])
@pytest.mark.parametrize("after", [0, 3])
def test_rounds_are_those_of_the_papers(comm, folders, lr, momentum, after):
    """In double precision; the outer step is torch's own SGD with Nesterov momentum."""
    every, rounds = 4, 2
    sync = {"every": every, "after": after, "outer_lr": lr, "outer_momentum": momentum}
    config = settings(folders, "causal", sync=sync, optimizer={"clip_norm": 0.0})
    plain = settings(folders, "causal", optimizer={"clip_norm": 0.0})
    together = trainer(comm, config, torch.float64)
    for _ in range(after + every * rounds):
        together.step()
    together.check_drift()
    if comm.rank:
        return  # rank 0 simulates, for all

    ranks = [trainer(Mute(rank, comm.size), plain, torch.float64) for rank in range(comm.size)]
    for rank in ranks:
        rank.state.progress.bucket_order = together.state.progress.bucket_order
    alone = trainer(Solo(), plain, torch.float64)
    for _ in range(after):
        alone.step()
    for rank in ranks:
        _copy(alone.state, rank.state)
    anchor = {name: p.detach().clone().requires_grad_() for name, p in alone.state.parameters.items()}
    nesterov = {"momentum": momentum, "nesterov": True} if momentum else {}
    outer = torch.optim.SGD(anchor.values(), lr=lr, **nesterov)
    for _ in range(rounds):
        for rank in ranks:
            for _ in range(every):
                rank.step()
        for name, weights in anchor.items():
            weights.grad = torch.stack(
                [weights.detach() - rank.state.parameters[name].detach() for rank in ranks]
            ).mean(0)
        outer.step()
        for rank in ranks:
            for name, parameter in rank.state.parameters.items():
                with torch.no_grad():
                    parameter.copy_(anchor[name])
    for name, parameter in together.state.parameters.items():
        torch.testing.assert_close(parameter, anchor[name], rtol=1e-10, atol=1e-12)


def test_steps_taken_while_an_exchange_is_under_way_count_fully(comm, folders):
    """With late = "add": they are added to the mean of what was sent."""
    sync = {"every": 4, "delay": 2, "late": "add", "outer_lr": 1.0, "outer_momentum": 0.0}
    together = trainer(comm, settings(folders, "causal", sync=sync), torch.float64)
    for _ in range(15):
        together.step()
    weights = torch.cat([parameter.detach().view(-1) for parameter in together.state.parameters.values()])
    everywhere = comm.gather_async("weights", weights).wait()
    if comm.rank:
        return  # rank 0 simulates, for all
    plain = settings(folders, "causal")
    ranks = [trainer(Mute(rank, comm.size), plain, torch.float64) for rank in range(comm.size)]
    for step in range(15):
        for rank in ranks:
            rank.step()
        if step % 4 == 3:
            sent = [[p.detach().clone() for p in rank.state.parameters.values()] for rank in ranks]
        if step > 4 and step % 4 == 1:
            means = [torch.stack(parameters).mean(0) for parameters in zip(*sent, strict=True)]
            for rank, had in zip(ranks, sent, strict=True):
                for parameter, mean, own in zip(rank.state.parameters.values(), means, had, strict=True):
                    parameter.detach().add_(mean - own)
    for rank, weights in zip(ranks, everywhere, strict=True):
        expected = torch.cat([parameter.detach().view(-1) for parameter in rank.state.parameters.values()])
        torch.testing.assert_close(weights, expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def _copy(source, target):
    for name, parameter in target.parameters.items():
        parameter.copy_(source.parameters[name])
    names = {parameter: name for name, parameter in source.parameters.items()}
    for parameter, state in source.optimizer.state.items():
        mine = target.parameters[names[parameter]]
        target.optimizer.state[mine] = {slot: value.clone() for slot, value in state.items() if value is not None}
    target.progress.step = source.progress.step


@pytest.mark.usefixtures("few_worlds")
@pytest.mark.parametrize("compressor", ["none", "int8", "powersgd", "sparseloco"])
@pytest.mark.parametrize("sync", [DILOCO, STREAMING, STREAMING | {"late": "add"}], ids=["diloco", "streaming", "added"])
def test_a_resume_in_the_middle_of_a_round_is_exact(comm, folders, compressor, sync, tmp_path_factory):
    if "late" in sync and compressor != "int8":
        pytest.skip("what is added does not depend on the compressor")
    config = settings(
        folders,
        "causal",
        sync=sync,
        reduce={"compressor": compressor, "bucket_mb": 0.02},
        optimizer={"name": "adamw", "lr": 1e-3},
    )
    straight = trainer(comm, config)
    for _ in range(9):  # with streaming: one fragment was sent and has not landed
        straight.step()
    again = resumed(straight, tmp_path_factory)
    assert again.state.progress.tokens == straight.state.progress.tokens
    losses = []  # one after the other, to the end: their operations have the same names
    for each in (straight, again):
        losses.append([each.step()[0]["loss"] for _ in range(each.state.progress.step, each.steps)])
    assert losses[0] == losses[1]
    for name, parameter in straight.state.parameters.items():
        assert torch.equal(parameter, again.state.parameters[name])
        assert torch.equal(straight.update.outer.anchor[name], again.update.outer.anchor[name])
        assert torch.equal(straight.update.outer.momentum[name], again.update.outer.momentum[name])


@pytest.mark.parametrize("sync", [DILOCO, STREAMING], ids=["diloco", "streaming"])
def test_all_agree_in_the_end_and_have_learnt(comm, folders, sync):
    config = settings(folders, "causal", sync=sync, reduce={"compressor": "int4"})
    together = trainer(comm, config)
    before = together.evaluate().loss
    for _ in range(together.steps):
        together.step()
    assert together.evaluate().loss < before
    together.check_drift()
    weights = torch.cat([parameter.detach().view(-1) for parameter in together.state.parameters.values()])
    everywhere = comm.gather_async("weights", weights).wait()
    assert all(torch.equal(other, weights) for other in everywhere)
    assert together.state.progress.tokens > 0


@pytest.mark.usefixtures("few_worlds")
@pytest.mark.parametrize("delay", [0, 3])
@pytest.mark.parametrize("every", [5, 7])
def test_nothing_is_lost_where_training_ends(comm, folders, every, delay):
    """The end may lie on a round's or within one; what is saved is what ranks have in the end."""
    sync = {"every": every, "delay": delay, "outer_lr": 1.0, "outer_momentum": 0.0}
    together = trainer(comm, settings(folders, "causal", sync=sync))
    for _ in range(together.steps - 1):
        together.step()
    mine = {name: parameter.detach().clone() for name, parameter in together.state.parameters.items()}
    together.step()
    assert any(not torch.equal(mine[name], parameter) for name, parameter in together.state.parameters.items())
    together.remember()
    saved = together.state.snapshot().model
    assert all(torch.equal(saved[name], parameter) for name, parameter in together.state.parameters.items())


@pytest.mark.usefixtures("few_worlds")
def test_where_no_step_is_left_what_was_learnt_apart_comes_together(comm, folders, tmp_path_factory):
    """If a run is told, while it is resumed, that it ended within a round; once, if it is told so again."""
    changes = {"sync": DILOCO, "train": {"steps": 9}}
    straight = trainer(comm, settings(folders, "causal", sync=DILOCO))
    for _ in range(9):
        straight.step()
    run = saved(straight, tmp_path_factory)
    for _ in range(2):
        shorter = trainer(comm, settings(folders, "causal", **changes), restore=checkpoint.folder(run, 9))
        _loop(shorter, run, Silence())
    straight.update.end()
    written = checkpoint.load(checkpoint.folder(run, 9), comm.rank, comm.size).model
    for name, parameter in straight.state.parameters.items():
        assert torch.equal(parameter, shorter.state.parameters[name])
        assert torch.equal(parameter, written[name])


@pytest.mark.parametrize("sync", [DILOCO, STREAMING], ids=["diloco", "streaming"])
def test_within_a_round_the_score_is_that_of_what_all_agree_on(comm, folders, sync):
    config = settings(folders, "causal", sync=sync)
    together = trainer(comm, config)
    for _ in range(8):
        together.step()
    agreed = trainer(Solo(), config)
    for name, parameter in agreed.state.parameters.items():
        assert not torch.equal(together.state.parameters[name], together.update.outer.anchor[name])
        parameter.detach().copy_(together.update.outer.anchor[name])
    assert together.evaluate().loss == pytest.approx(agreed.evaluate().loss, rel=1e-6)
    together.check_drift()


@pytest.mark.usefixtures("few_worlds")
def test_before_ranks_part_a_checkpoint_has_what_was_trained(comm, folders):
    together = trainer(comm, settings(folders, "causal", sync={"every": 4, "after": 10}))
    for _ in range(10):
        together.step()
    together.remember()
    saved = together.state.snapshot().model
    assert all(torch.equal(saved[name], parameter) for name, parameter in together.state.parameters.items())


def test_one_rank_that_breaks_does_not_break_the_others(comm, folders):
    config = settings(folders, "causal", sync={"every": 4}, reduce={"compressor": "int8"})
    together = trainer(comm, config)
    for _ in range(2):
        together.step()
    if comm.rank == comm.size - 1:
        with torch.no_grad():
            next(iter(together.state.parameters.values()))[0, 0] = torch.nan
    for _ in range(6):
        together.step()
    assert all(parameter.isfinite().all() for parameter in together.state.parameters.values())
    together.check_drift()


def test_waiting_for_the_others_at_a_rounds_end_is_exposed(comm, folders):
    """It is neither compute nor the loop's own time."""
    slow_s = 0.5
    together = trainer(comm, settings(folders, "causal", sync={"every": 2}), trace=Seen())
    together.step()
    comm.gather_objects("ready", None)
    if comm.rank == comm.size - 1:
        time.sleep(slow_s)
    together.step()
    alone_s, met_s = (sum(end - start for start, end in together.trace.spans(at, "exposed")) / 1e9 for at in (0, 1))
    assert alone_s < slow_s / 2
    if comm.rank < comm.size - 1:
        assert met_s > slow_s / 2
