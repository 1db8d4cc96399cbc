"""Gradients taken up one step later, against the same gradients held back by hand."""

import pytest
import torch
from small_training import settings, trainer
from test_overlap import CASES, STEPS, Slow

from hvd_llm import checkpoint


def _trainers(comm, folders, case, delays=(0, 1)):
    task, changes = CASES[case]
    others = {name: values for name, values in changes.items() if name != "reduce"}
    return [
        trainer(comm, settings(folders, task, reduce=changes.get("reduce", {}) | {"delay": delay}, **others))
        for delay in delays
    ]


def _hold_back(trainer):
    """Make a trainer without delay use what it summed in the step before."""
    take, held = trainer.update.take, []

    def late(*how):
        flats = [bucket.flat for bucket in trainer.reducer.buckets]
        held.append(([flat.clone() for flat in flats], how))
        if len(held) == 1:
            trainer.reducer.memory.keep()
            return {}
        sums, how = held.pop(0)
        for flat, old in zip(flats, sums, strict=True):
            flat.copy_(old)
        return take(*how)

    trainer.update.take = late


def _equal(first, second):
    for name, parameter in first.state.parameters.items():
        assert torch.equal(parameter, second.state.parameters[name]), name


@pytest.mark.parametrize("case", CASES)
def test_weights_follow_the_gradients_of_the_step_before(comm, folders, case):
    plain, delayed = _trainers(comm, folders, case)
    _hold_back(plain)
    rows = [[each.step()[0] for _ in range(STEPS)] for each in (plain, delayed)]
    for expected, row in zip(*rows, strict=True):
        assert expected["loss"] == row["loss"]
        assert row["gradient_norm"] == expected.get("gradient_norm")
    delayed.check_drift()
    _equal(plain, delayed)
    plain.update.take(1.0, False)
    delayed.meet()
    _equal(plain, delayed)
    assert len(delayed.reducer.buckets) > 3


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
    plain, delayed = _trainers(comm, folders, "causal")
    _hold_back(plain)
    for each in (plain, delayed):
        for step in range(6):
            hook = _spoil(each) if step == 2 and comm.rank == comm.size - 1 else None
            each.step()
            if hook:
                hook.remove()
            assert each.state.progress.skipped == (step > 2)
    _equal(plain, delayed)


def _spoil(trainer):
    last = trainer.state.parameters[trainer.state.progress.bucket_order[-1]]
    return last.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([1]), torch.inf))


@pytest.mark.parametrize("case", ["adamw", "classify", "int4"])
def test_a_checkpoint_has_what_is_under_way(comm, folders, case, tmp_path_factory):
    (straight,) = _trainers(comm, folders, case, [1])
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
