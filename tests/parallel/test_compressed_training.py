"""Training with every compressor: ranks stay alike, a bad gradient leaves no trace, nothing is lost in a checkpoint."""

import pytest
import torch
from small_training import resumed, settings, trainer
from worlds import node_size, possible

from hvd_llm.compress import registry

BAD_STEP = 5
LATER = 4


# With this kappa, the first bad step is one whose gradients are compressed, the second one whose are not.
ZERO_ONE = {"name": "zero_one_adam", "kappa": 2, "lr": 0.01}
OTHERS = ["hierarchical(across=powersgd)", "zero_one_adam"]

pytestmark = pytest.mark.usefixtures("few_worlds")  # what compressors do in any world is in their own suite


@pytest.fixture(params=[*(name for name in registry.names() if name != "none"), *OTHERS])
def config(request, folders, comm):
    zero_one = request.param == "zero_one_adam"
    possible(registry.find("onebit" if zero_one else request.param), comm.size, node_size(comm.size))
    reduce = {"compressor": "onebit" if zero_one else request.param, "warmup_steps": 2, "bucket_mb": 0.02}
    optimizer = ZERO_ONE if zero_one else {"beta1": 0.0} if request.param == "dgc" else {}
    return settings(folders, "causal", reduce=reduce, optimizer=optimizer)


def test_ranks_agree_and_learn(comm, config):
    together = trainer(comm, config)
    losses = [together.step()[0]["loss"] for _ in range(12)]
    together.check_drift()
    assert losses[-1] < losses[0]


def test_double_precision(comm, config):
    together = trainer(comm, config, torch.float64)
    losses = [together.step()[0]["loss"] for _ in range(5)]
    together.check_drift()
    assert losses[-1] < losses[0]


def test_a_bad_gradient_is_as_if_the_step_were_left_out(comm, config):
    """One element, on one rank, first infinite, then not a number; the twin passes over these steps."""
    together, twin = trainer(comm, config), trainer(comm, config)
    for step in range(BAD_STEP + LATER):
        bad = {BAD_STEP: torch.inf, BAD_STEP + 1: torch.nan}.get(step)
        if bad is None:
            together.step()
            twin.step()
            continue
        hook = _spoil(together, bad) if comm.rank == comm.size - 1 else None
        together.step()
        if hook:
            hook.remove()
        twin.state.progress.step += 1
    assert together.state.progress.skipped == 2
    for name, parameter in together.state.parameters.items():
        assert torch.equal(parameter, twin.state.parameters[name])
    _same(together.reducer.memory.by_parameter(), twin.reducer.memory.by_parameter())
    _same({"optimizer": together.state.snapshot().optimizer}, {"optimizer": twin.state.snapshot().optimizer})


def _spoil(trainer, bad):
    weight = next(p for p in trainer.state.parameters.values() if p.dim() == 2)

    def spoil(gradient):
        gradient = gradient.clone()
        gradient.view(-1)[7] = bad
        return gradient

    return weight.register_hook(spoil)


def _same(kept, expected):
    assert kept.keys() == expected.keys()
    for name, slots in kept.items():
        assert slots.keys() == expected[name].keys()
        assert all(torch.equal(value, expected[name][slot]) for slot, value in slots.items())


def test_a_resumed_run_has_the_same_bits(comm, config, tmp_path_factory):
    straight = trainer(comm, config)
    for _ in range(BAD_STEP):
        straight.step()
    again = resumed(straight, tmp_path_factory)
    for _ in range(LATER):
        straight.step()
        again.step()
    for name, parameter in straight.state.parameters.items():
        assert torch.equal(parameter, again.state.parameters[name])
    _same(straight.reducer.memory.by_parameter(), again.reducer.memory.by_parameter())


@pytest.mark.parametrize("task", ["masked", "classify"])
def test_matrices_too_small_for_powersgd_go_beside_the_others(comm, folders, task):
    """BERT has an embedding of two rows, and so has the head of two classes."""
    together = trainer(comm, settings(folders, task, reduce={"compressor": "powersgd"}))
    for _ in range(3):
        together.step()
    together.check_drift()


def test_loss_scale_does_not_reach_the_error(comm, folders):
    """Scales that are powers of two change no bit."""
    reduce = {"compressor": "int4", "bucket_mb": 0.02}
    plain, scaled = (trainer(comm, settings(folders, "causal", reduce=reduce)) for _ in range(2))
    for step in range(6):
        scaled.state.loss_scale.value = 2.0 ** (10 + step % 3)
        plain.step()
        scaled.step()
    _same(scaled.reducer.memory.by_parameter(), plain.reducer.memory.by_parameter())
