"""What hides the exchange changes when weights are updated, and not one bit of them."""

import time

import pytest
import torch
from small_training import resumed, settings, trainer

from hvd_llm.comm.solo import Solo

OVERLAPS = ("none", "backward", "forward")
STEPS, BAD_STEP = 5, 3
ZERO_ONE = {"name": "zero_one_adam", "kappa": 2, "lr": 0.01}
CASES = {
    "causal": ("causal", {}),
    "masked": ("masked", {}),
    "classify": ("classify", {}),
    "llama": ("causal", {"model": {"family": "llama"}}),
    "adamw": ("causal", {"optimizer": {"name": "adamw", "lr": 1e-3}}),
    "clipped": ("causal", {"optimizer": {"clip_norm": 0.1, "clip_by": "last"}}),
    "int4": ("causal", {"reduce": {"compressor": "int4"}}),
    "zero_one": ("causal", {"optimizer": ZERO_ONE, "reduce": {"compressor": "onebit"}}),
    "powersgd": ("causal", {"reduce": {"compressor": "powersgd"}}),
    "checkpointing": ("causal", {"train": {"activation_checkpointing": True}}),
}


def _trainers(comm, folders, case, overlaps=OVERLAPS):
    task, changes = CASES[case]
    others = {name: values for name, values in changes.items() if name not in ("optimizer", "reduce")}
    optimizer, reduce = {"clip_norm": 0} | changes.get("optimizer", {}), changes.get("reduce", {})
    return [
        trainer(comm, settings(folders, task, optimizer=optimizer, reduce=reduce | {"overlap": overlap}, **others))
        for overlap in overlaps
    ]


def _equal(first, second):
    for name, parameter in first.state.parameters.items():
        assert torch.equal(parameter, second.state.parameters[name]), name
    assert first.state.progress.norm == second.state.progress.norm


@pytest.mark.usefixtures("few_worlds")
@pytest.mark.parametrize("case", CASES)
def test_no_bit_depends_on_it(comm, folders, case):
    first, *others = _trainers(comm, folders, case)
    losses = [first.step()[0]["loss"] for _ in range(STEPS)]
    for other in others:
        assert [other.step()[0]["loss"] for _ in range(STEPS)] == losses
        other.check_drift()
        _equal(first, other)
    assert len(first.reducer.buckets) > 3


class Slow(Solo):
    """Answers come after a while, so that forward finds exchanges under way."""

    def sum_async(self, *args):
        return Later(super().sum_async(*args))

    def gather_async(self, *args):
        return Later(super().gather_async(*args))

    def all_to_all_async(self, *args):
        return Later(super().all_to_all_async(*args))


class Later:
    def __init__(self, handle):
        self.wait, self._when = handle.wait, time.monotonic() + 0.003

    def ready(self):
        return time.monotonic() > self._when


@pytest.mark.parametrize("compressor", ["none", "powersgd", "demo", "onebit"])
def test_forward_finds_exchanges_under_way(comm, folders, compressor):
    """In its autocast, which is not for compressors."""
    if comm.size > 1:
        pytest.skip("each rank would do the same for itself")
    backward, forward = (
        trainer(
            Slow(),
            settings(
                folders,
                "causal",
                train={"precision": "bf16"},
                optimizer={"clip_norm": 0},
                reduce={"overlap": overlap, "compressor": compressor},
            ),
        )
        for overlap in ("backward", "forward")
    )
    for _ in range(4):
        assert backward.step()[0]["loss"] == forward.step()[0]["loss"]
    before = {name: parameter.clone() for name, parameter in forward.state.parameters.items()}
    forward.update.settle()
    late = [name for name, parameter in forward.state.parameters.items() if not torch.equal(parameter, before[name])]
    assert late  # the step was over before all weights were updated
    _equal(backward, forward)
    assert len(forward.reducer.buckets) > 3


def test_no_bit_depends_on_it_between_hosts(comm, folders, monkeypatch):
    """Gradients go through Horovod, as where memory is not shared."""
    monkeypatch.setattr(comm, "_memory", None, raising=False)
    test_no_bit_depends_on_it(comm, folders, "causal")


@pytest.mark.usefixtures("few_worlds")
@pytest.mark.parametrize("case", ["causal", "int4"])
def test_a_bad_gradient_skips_the_whole_step(comm, folders, case):
    """It is in the bucket that comes last in backward, after others have been summed; the loss stays finite."""
    both = _trainers(comm, folders, case, ("backward", "forward"))
    for each in both:  # one after the other: names of buckets under way are unique
        for step in range(BAD_STEP + 4):
            hook = spoil(each) if step == BAD_STEP and comm.rank == comm.size - 1 else None
            each.step()
            if hook:
                hook.remove()
        each.update.settle()
        assert each.state.progress.skipped == 1
    _equal(*both)


def spoil(trainer, value=torch.inf):
    last = trainer.state.parameters[trainer.state.progress.bucket_order[-1]]
    return last.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([1]), value))


@pytest.mark.usefixtures("few_worlds")
def test_a_checkpoint_waits_for_all_updates(comm, folders, tmp_path_factory):
    (straight,) = _trainers(comm, folders, "adamw", ("forward",))
    for _ in range(3):
        straight.step()
    again = resumed(straight, tmp_path_factory)
    for each in (straight, again):
        for _ in range(3):
            each.step()
        each.update.settle()
    _equal(straight, again)


def test_evaluation_sees_the_last_step(comm, folders):
    scores = []
    for each in _trainers(comm, folders, "causal", ("backward", "forward")):
        each.step()
        scores.append(each.evaluate())
    assert scores[0] == scores[1]
