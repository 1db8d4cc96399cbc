"""Sums taken up one step later, while each rank goes ahead by its own gradient; against the same done step by step."""

import copy

import pytest
import torch
from small_training import Apart, backward, settings, trainer
from test_overlap import CASES, STEPS, Slow, spoil

from hvd_llm import checkpoint, optimizer
from hvd_llm.comm.solo import Solo


def _delayed(comm, folders, case, dtype=torch.float32):
    task, changes = CASES[case]
    others = {name: values for name, values in changes.items() if name not in ("optimizer", "reduce")}
    reduce, how = changes.get("reduce", {}) | {"delay": 1}, {"clip_norm": 0} | changes.get("optimizer", {})
    return trainer(comm, settings(folders, task, reduce=reduce, optimizer=how, **others), dtype)


def _take(params, update, gradients, lr):
    """One step of an optimizer by gradients."""
    for group in update.param_groups:
        group["lr"] = lr
    for parameter, gradient in zip(params, gradients, strict=True):
        parameter.grad = gradient.clone()
    update.step()


def _equal(first, second):
    for name, parameter in first.state.parameters.items():
        assert torch.equal(parameter, second.state.parameters[name]), name


@pytest.mark.parametrize("case", ["causal", "adamw", "classify", "clipped"])
def test_ranks_do_what_simulated_ranks_do(comm, folders, case):
    delayed = _delayed(comm, folders, case, torch.float64)
    config, steps = delayed.config, delayed.steps
    plain = settings(folders, CASES[case][0], train={"steps": steps}, reduce={"rows": False})
    ranks = [trainer(Apart(rank, comm.size), plain, torch.float64) for rank in range(comm.size)]
    agreed = trainer(Solo(), settings(folders, CASES[case][0], optimizer=_changed(case)), torch.float64).state
    weights, held, norm = list(agreed.parameters.values()), None, None
    for step in range(STEPS):
        delayed.step()
        count = sum(backward(rank, step) for rank in ranks)
        mine = [[p.grad.clone() for p in rank.state.parameters.values()] for rank in ranks]
        factor = ranks[0].nominal / count
        if held:
            clip = _clip(config, norm)
            norm = float(torch.stack([g.norm() for g in held]).norm())
            _take(
                weights,
                agreed.optimizer,
                [g * clip for g in held],
                optimizer.learning_rate(config.optimizer, step, steps),
            )
        held = [sum(parts) * factor for parts in zip(*mine, strict=True)]
        for rank, own in zip(ranks, mine, strict=True):
            ahead, update = copy.deepcopy((weights, agreed.optimizer))
            clip = _clip(config, norm)
            lr = optimizer.learning_rate(config.optimizer, step + 1, steps)
            _take(ahead, update, [g * comm.size * factor * clip for g in own], lr)
            with torch.no_grad():
                for parameter, value in zip(rank.state.parameters.values(), ahead, strict=True):
                    parameter.copy_(value)
            rank.state.progress.step += 1
        for name, parameter in delayed.state.parameters.items():
            torch.testing.assert_close(parameter, ranks[comm.rank].state.parameters[name], rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(delayed.update.agreed[name], agreed.parameters[name], rtol=1e-9, atol=1e-11)
    delayed.check_drift()


def _clip(config, norm):
    """By the norm of the last sum."""
    return min(1.0, config.optimizer.clip_norm / norm) if config.optimizer.clip_norm and norm else 1.0


def _changed(case):
    return {"clip_norm": 0} | CASES[case][1].get("optimizer", {})


@pytest.mark.usefixtures("few_worlds")
@pytest.mark.parametrize("case", CASES)
def test_all_ranks_agree(comm, folders, case):
    """Also on what is evaluated, after which each goes on from where it was; at the end no rank is ahead."""
    both = [_delayed(comm, folders, case) for _ in range(2)]
    first, second = both
    for _ in range(STEPS):
        first.step()
    first.check_drift()
    first.meet()
    for _ in range(STEPS):
        second.step()
        second.evaluate()
    second.meet()
    _equal(*both)
    first.check_drift()
    assert len(first.reducer.buckets) > 3


@pytest.mark.parametrize("compressor", ["none", "powersgd", "onebit"])
def test_exchanges_go_on_under_forward(comm, folders, compressor):
    """In its autocast, which is not for compressors."""
    if comm.size > 1:
        pytest.skip("each rank would do the same for itself")
    how = {"train": {"precision": "bf16"}, "reduce": {"compressor": compressor, "delay": 1}}
    both = [trainer(each, settings(folders, "causal", **how)) for each in (comm, Slow())]
    for _ in range(4):
        assert len({each.step()[0]["loss"] for each in both}) == 1
    _equal(*both)


def test_a_bad_gradient_skips_its_update(comm, folders):
    """And its rank does not go ahead by it."""
    delayed = _delayed(comm, folders, "causal")
    for step in range(6):
        hook = spoil(delayed) if step == 2 and comm.rank == comm.size - 1 else None
        row, _ = delayed.step()
        if hook:
            hook.remove()
        assert row["skipped"] == (step > 2)
        assert all(p.isfinite().all() for p in delayed.state.parameters.values())
    delayed.check_drift()


@pytest.mark.usefixtures("few_worlds")
@pytest.mark.parametrize("case", ["adamw", "classify", "int4"])
def test_a_checkpoint_has_what_is_under_way(comm, folders, case, tmp_path_factory):
    straight = _delayed(comm, folders, case)
    for _ in range(3):
        straight.step()
    straight.remember()
    run = tmp_path_factory.mktemp("run")
    run = type(run)(comm.broadcast_object("folder", str(run)))
    checkpoint.save(run, straight.state.snapshot(), lambda folder: None, comm)
    resumed = trainer(comm, straight.config, restore=checkpoint.folder(run, 3))
    for each in (straight, resumed):
        for _ in range(3):
            each.step()
        each.meet()
    _equal(straight, resumed)
    straight.remember()
    assert not straight.state.shared
