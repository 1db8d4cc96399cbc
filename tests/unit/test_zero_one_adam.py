"""0/1 Adam's update rule and schedule, against the paper's algorithm 1 and against AdamW."""

import pytest
import torch

from hvd_llm import optimizer
from hvd_llm.compress.none import none
from hvd_llm.compress.onebit import onebit
from hvd_llm.config import Optimizer
from hvd_llm.reduce import lockstep
from hvd_llm.zero_one_adam import moves

KAPPA, LR, BETA1, BETA2, EPS, DECAY = 3, 0.02, 0.9, 0.95, 1e-8, 0.1


@pytest.mark.parametrize("kappa", [1, 2, 3, 16])
def test_the_schedule_is_the_papers(kappa):
    expected, place = [], 0
    for j in range(10 * kappa):
        expected.append(place)
        place += 2 ** (j // kappa)
    assert [step for step in range(place) if moves(step, kappa)] == expected


def build(weights, **settings):
    config = Optimizer(lr=LR, beta1=BETA1, beta2=BETA2, eps=EPS, **settings)
    return optimizer.build(config, [{"params": [weights], "weight_decay": DECAY}])


def take(update, weights, gradient, exact):
    weights.grad = gradient.clone()
    for group in update.param_groups:
        group["exact"] = exact
    update.step()


def test_if_every_step_is_exact_it_is_adamw():
    torch.manual_seed(0)
    ours = torch.randn(50, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    zero_one, adamw = build(ours, name="zero_one_adam"), build(theirs, name="adamw")
    for _ in range(30):
        gradient = torch.randn(50, dtype=torch.float64)
        take(zero_one, ours, gradient, exact=True)
        take(adamw, theirs, gradient, exact=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


class Algorithm1:
    """Algorithm 1 for all ranks at once, in the paper's order, T_u being every step; Adam's bias correction added.

    It sends what momentum has become on each rank, times the learning rate.
    """

    def __init__(self, weights, ranks, compressor):
        self.x, self.compressor = weights.clone(), compressor
        self.m, self.v = torch.zeros_like(weights), torch.zeros_like(weights)
        self.errors = [{} for _ in range(ranks)]
        self.t = self.moved = 0

    def step(self, gradients):
        n, moves_now = len(gradients), moves(self.t, KAPPA)
        self.t += 1
        if moves_now:
            self.moved += 1
            self.v = BETA2 * self.v + (1 - BETA2) * (sum(gradients) / n) ** 2
        buffers = [LR * (BETA1 * self.m + (1 - BETA1) * gradient) / n for gradient in gradients]
        mean_buffer = lockstep.reduce(none if moves_now else self.compressor, buffers, self.errors)[0]
        self.m = mean_buffer / LR
        denominator = (self.v / (1 - BETA2**self.moved)).sqrt() + EPS
        self.x = self.x - LR * DECAY * self.x - mean_buffer / (1 - BETA1**self.t) / denominator


def both(ranks, compressor, steps, dtype):
    """Ours and algorithm 1's weights, from one set of gradients: those of a bowl, and noise."""
    torch.manual_seed(0)
    start, stretch = torch.randn(3000, dtype=dtype), torch.rand(3000, dtype=dtype) + 0.1
    ours, theirs = start.clone().requires_grad_(), Algorithm1(start, ranks, compressor)
    update, states = build(ours, name="zero_one_adam"), [{} for _ in range(ranks)]
    for step in range(steps):
        noise = [0.3 * torch.randn(3000, dtype=dtype) for _ in range(ranks)]
        theirs.step([stretch * theirs.x + each for each in noise])
        mine = [(stretch * ours.detach() + each) / ranks for each in noise]
        exact = moves(step, KAPPA)
        take(update, ours, lockstep.reduce(none if exact else compressor, mine, states)[0], exact)
    return start, ours.detach(), theirs.x


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_without_compression_it_is_algorithm_1(ranks):
    """Gradients or momentum: one is linear in the other, so it does not matter which is sent."""
    _, ours, theirs = both(ranks, none, 60, torch.float64)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_with_one_bit_it_arrives_where_algorithm_1_does(ranks):
    """And closer to where no compression leads: a gradient's error enters the momentum at 1 - beta1 of its size."""
    start, ours, theirs = both(ranks, onebit, 200, torch.float32)
    _, uncompressed, _ = both(ranks, none, 200, torch.float32)
    off, theirs_off = ((weights - uncompressed).norm() / start.norm() for weights in (ours, theirs))
    assert off < 0.05
    assert off < theirs_off < 0.2


def test_the_second_moment_rests_while_gradients_are_compressed():
    weights = torch.ones(4, requires_grad=True)
    update = build(weights, name="zero_one_adam")
    take(update, weights, torch.full((4,), 2.0), exact=True)
    before = update.state[weights]["exp_avg_sq"].clone()
    take(update, weights, torch.full((4,), 50.0), exact=False)
    assert torch.equal(update.state[weights]["exp_avg_sq"], before)
    take(update, weights, torch.full((4,), 50.0), exact=True)
    assert (update.state[weights]["exp_avg_sq"] > before).all()


def test_a_weight_without_gradients_stays_whatever_one_bit_makes_of_them():
    """Rows of positions that no sequence reaches: one bit is never zero."""
    weights = torch.ones(2048, requires_grad=True)
    update, state = build(weights, name="zero_one_adam"), {}
    unused = slice(1000, 1100)
    decayed = 1.0
    for step in range(40):
        gradient = torch.randn(2048)
        gradient[unused] = 0
        exact = moves(step, 1)
        sent = lockstep.reduce(none if exact else onebit, [gradient], [state])[0]
        assert exact or sent[unused].ne(0).all()
        take(update, weights, sent, exact)
        decayed *= 1 - LR * DECAY
    torch.testing.assert_close(weights[unused].detach(), torch.full((100,), decayed))


def test_steps_that_are_left_out_leave_nothing_undefined():
    """The first steps of a schedule may all be skipped: then there is nothing yet to divide by."""
    weights = torch.ones(4, requires_grad=True)
    update = build(weights, name="zero_one_adam")
    take(update, weights, torch.ones(4), exact=False)
    torch.testing.assert_close(weights.detach(), torch.full((4,), 1 - LR * DECAY))
