"""Sums taken up one step later, while each rank goes ahead by its own gradient; against the same done step by step."""

import copy
import time

import pytest
import torch
from small_training import Seen, backward, resumed, saved, settings, trainer
from test_overlap import CASES, STEPS, Slow, spoil

from hvd_llm import checkpoint, optimizer
from hvd_llm.comm.mute import Mute
from hvd_llm.comm.solo import Solo
from hvd_llm.metrics import Silence
from hvd_llm.train import _loop

CASES = CASES | {
    "clipped by this": ("causal", {"optimizer": {"clip_norm": 0.1}}),
    "to zero": ("causal", {"optimizer": {"schedule": "linear", "final_lr": 0.0}}),
}
EXACTLY = {"rtol": 0, "atol": 0}


def _settings(folders, case, steps=STEPS, **reduce):
    task, changes = CASES[case]
    ours = {
        "optimizer": {"clip_norm": 0} | changes.get("optimizer", {}),
        "reduce": changes.get("reduce", {}) | {"delay": 1} | reduce,
        "train": changes.get("train", {}) | {"steps": steps},
    }
    return settings(folders, task, **changes | ours)


def _take(parameters, update, gradients, lr, how, last):
    """One step of an optimizer; returns the norm of the gradients before clipping."""
    norm = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
    by = norm if how.clip_by == "this" else last
    clip = min(1.0, how.clip_norm / by) if how.clip_norm and by else 1.0
    for group in update.param_groups:
        group["lr"] = lr
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient * clip
    update.step()
    return norm


def _flat(weights):
    return torch.cat([weight.detach().view(-1) for weight in weights.values()]) if weights else torch.empty(0)


def _everywhere(comm, weights):
    return comm.gather_async("everywhere", _flat(weights)).wait()


def _equal(first, second):
    torch.testing.assert_close(first.state.parameters, second.state.parameters, **EXACTLY)


@pytest.mark.parametrize("case", ["causal", "adamw", "classify", "clipped", "clipped by this", "to zero"])
def test_ranks_do_what_simulated_ranks_do(comm, folders, case):
    """Up to the end, where no rank is ahead any more."""
    delayed, seen = trainer(comm, _settings(folders, case), torch.float64), []
    for _ in range(STEPS):
        delayed.step()
        seen.append([_everywhere(comm, weights) for weights in (delayed.state.parameters, delayed.update.agreed)])
    delayed.check_drift()
    if comm.rank:
        return  # rank 0 simulates, for all
    plain, how = _settings(folders, case, delay=0, rows=False), delayed.config.optimizer
    ranks = [trainer(Mute(rank, comm.size), plain, torch.float64) for rank in range(comm.size)]
    agreed = trainer(Solo(), plain, torch.float64).state
    weights, held, norm = list(agreed.parameters.values()), None, None
    close = {"rtol": 1e-9, "atol": 1e-11}
    for step, (ahead_everywhere, agreed_everywhere) in enumerate(seen):
        count = sum(backward(rank, step) for rank in ranks)
        mine = [[p.grad.clone() for p in rank.state.parameters.values()] for rank in ranks]
        if held:
            norm = _take(weights, agreed.optimizer, *held, how, norm)
        factor, lr = ranks[0].nominal / count, optimizer.learning_rate(how, step, STEPS)
        held = [sum(parts) * factor for parts in zip(*mine, strict=True)], lr
        if step == STEPS - 1:
            break
        for rank, own in zip(ranks, mine, strict=True):
            ahead, update = copy.deepcopy((weights, agreed.optimizer))
            _take(ahead, update, [gradient * comm.size * factor for gradient in own], lr, how, norm)
            with torch.no_grad():
                for parameter, value in zip(rank.state.parameters.values(), ahead, strict=True):
                    parameter.copy_(value)
            rank.state.progress.step += 1
        torch.testing.assert_close(ahead_everywhere, [_flat(rank.state.parameters) for rank in ranks], **close)
        torch.testing.assert_close(agreed_everywhere, [_flat(agreed.parameters)] * comm.size, **close)
    _take(weights, agreed.optimizer, *held, how, norm)
    torch.testing.assert_close(delayed.state.parameters, agreed.parameters, **close)


@pytest.mark.usefixtures("few_worlds")
@pytest.mark.parametrize("case", CASES)
def test_all_ranks_agree(comm, folders, case):
    """Also on what is evaluated, after which each goes on from where it was; at the end no rank is ahead."""
    first, second, plain = (trainer(comm, _settings(folders, case)) for _ in range(3))
    for _ in range(STEPS):
        first.step()
    first.check_drift()
    for _ in range(STEPS):
        second.step()
        with torch.no_grad():
            for name, weights in (second.update.agreed or second.state.parameters).items():
                plain.state.parameters[name].copy_(weights)
        scores = repr(second.evaluate()), repr(plain.evaluate())
        assert len({score for pair in comm.gather_objects("scores", scores) for score in pair}) == 1
    _equal(first, second)
    first.check_drift()
    assert len(first.reducer.buckets) > 3


@pytest.mark.parametrize("compressor", ["none", "powersgd", "onebit"])
def test_exchanges_go_on_under_forward(comm, folders, compressor):
    """In its autocast, which is not for compressors."""
    if comm.size > 1:
        pytest.skip("each rank would do the same for itself")
    how = {"train": {"precision": "bf16", "micro_batch": 6}, "reduce": {"compressor": compressor, "delay": 1}}
    quick, slow = (trainer(each, settings(folders, "causal", **how), trace=Seen()) for each in (comm, Slow()))
    for module in slow.state.model.modules():  # each long enough for an answer
        module.register_forward_pre_hook(lambda *_: time.sleep(0.004))
    for step in range(4):
        assert quick.step()[0]["loss"] == slow.step()[0]["loss"]
        landed = slow.trace.spans(step, "bucket_exchange")
        assert len(landed) == (len(slow.reducer.buckets) if step else 0)
        ((backward, _),) = slow.trace.spans(step, "backward")
        assert all(end <= backward for _, end in landed)
    _equal(quick, slow)


@pytest.mark.parametrize("case", ["causal", "int4"])
def test_a_bad_gradient_skips_its_update(comm, folders, case):
    """And its rank does not go ahead by it; nor does a compressor remember it."""
    delayed, culprit = trainer(comm, _settings(folders, case)), comm.rank == comm.size - 1

    def state():
        return copy.deepcopy((delayed.update.agreed, delayed.reducer.memory.by_parameter()))

    for step in range(STEPS):
        before = state()
        hook = spoil(delayed) if step == 2 and culprit else None
        row, _ = delayed.step()
        if hook:
            hook.remove()
            torch.testing.assert_close(dict(delayed.state.parameters), delayed.update.agreed, **EXACTLY)
        if step == 3:
            torch.testing.assert_close(state(), before, **EXACTLY)
            assert bool(before[1]) == (case == "int4")
        assert row["skipped"] == (step > 2)
        assert all(p.isfinite().all() for p in delayed.state.parameters.values())
    delayed.check_drift()


@pytest.mark.usefixtures("few_worlds")
@pytest.mark.parametrize(("case", "spoilt"), [("adamw", None), ("classify", None), ("int4", None), ("int4", 1e30)])
def test_a_checkpoint_has_what_is_under_way(comm, folders, case, spoilt, tmp_path_factory):
    """Also if its norm is infinite, though no element is."""
    straight = trainer(comm, _settings(folders, case))
    for step in range(3):
        hook = spoil(straight, spoilt) if step == 2 and spoilt and comm.rank == 0 else None
        straight.step()
    if hook:
        hook.remove()
    again = resumed(straight, tmp_path_factory)
    for each in (straight, again):
        while each.state.progress.step < each.steps:
            each.step()
        each.remember()
        assert each.state.progress.skipped == bool(spoilt)
        assert not each.state.shared
    _equal(straight, again)
    torch.testing.assert_close(straight.state.memory, again.state.memory, **EXACTLY)


@pytest.mark.usefixtures("few_worlds")
def test_another_number_of_ranks_takes_what_is_under_way(comm, folders, tmp_path_factory):
    straight = trainer(comm, _settings(folders, "int4"))
    for _ in range(3):
        straight.step()
    run = saved(straight, tmp_path_factory)
    alone = trainer(Solo(), straight.config, restore=checkpoint.folder(run, 3))
    for each in (straight, alone):
        each.step()
    torch.testing.assert_close(straight.update.agreed, alone.update.agreed, **EXACTLY)
    straight.update.end()


@pytest.mark.usefixtures("few_worlds")
def test_where_no_step_is_left_what_is_under_way_is_taken(comm, folders, tmp_path_factory):
    straight = trainer(comm, _settings(folders, "adamw"))
    for _ in range(3):
        straight.step()
    run = saved(straight, tmp_path_factory)
    shorter = trainer(comm, _settings(folders, "adamw", steps=3), restore=checkpoint.folder(run, 3))
    _loop(shorter, run, Silence())
    straight.update.end()
    _equal(straight, shorter)
    written = checkpoint.load(checkpoint.folder(run, 3), comm.rank, comm.size)
    assert not written.progress["under_way"]
    assert all(torch.equal(written.model[name], parameter) for name, parameter in straight.state.parameters.items())


@pytest.mark.parametrize("early", [True, False])
def test_the_last_update_is_part_of_a_step_if_one_is_under_way(comm, folders, early):
    """Not where training is given up between steps."""
    delayed = trainer(comm, _settings(folders, "causal"), trace=Seen())
    for _ in range(STEPS - early):
        delayed.step()
    ((began, over),) = delayed.trace.spans(STEPS - 1 - early, "step")
    delayed.update.end()
    parts = delayed.trace.spans(STEPS - 1 - early, "input", "forward", "backward", "exposed", "optimizer")
    assert all(began <= start <= end <= over for start, end in parts)
    assert not delayed.update.agreed
    delayed.check_drift()
