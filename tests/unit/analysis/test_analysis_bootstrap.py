"""Intervals cover the truth about as often as they promise, also when steps resemble their neighbours."""

import numpy as np
import pytest
from synthetic_runs import _autocorrelated

from analysis import bootstrap

TRIALS = 80


@pytest.mark.parametrize(("rho", "repeats", "between"), [(0.0, 1, 0.0), (0.7, 1, 0.0), (0.7, 5, 0.01)])
def test_intervals_cover_the_truth(rho, repeats, between, monkeypatch):
    monkeypatch.setattr(bootstrap, "DRAWS", 500)
    random = np.random.default_rng(1)

    def runs(mean):
        levels = mean * (1 + between * random.standard_normal(repeats))
        return [level * (1 + 0.02 * _autocorrelated(200, rho, random)) for level in levels]

    covered = {"ratio": 0, "median": 0}
    for _ in range(TRIALS):
        a, b = runs(0.20), runs(0.25)
        ones = np.ones(200)
        rates = [bootstrap.throughput_draws([(ones, s) for s in side], (key,)) for key, side in enumerate((a, b))]
        low, high = bootstrap.interval(rates[1] / rates[0])
        covered["ratio"] += low <= 0.8 <= high
        medians = [bootstrap.median_draws(side, (key,)) for key, side in enumerate((a, b))]
        low, high = bootstrap.interval(medians[1] / medians[0])
        covered["median"] += low <= 1.25 <= high
    # 95 % of 80 trials, less three standard deviations of a binomial count and what few blocks cost.
    assert min(covered.values()) >= 0.86 * TRIALS, covered


def test_intervals_are_not_needlessly_wide():
    random = np.random.default_rng(2)
    seconds = 0.2 * (1 + 0.02 * random.standard_normal(1000))
    low, high = bootstrap.interval(bootstrap.throughput_draws([(np.ones(1000), seconds)], (0,)))
    assert (high - low) * 0.2 == pytest.approx(2 * 1.96 * 0.02 / np.sqrt(1000), rel=0.25)


def test_blocks_grow_with_autocorrelation():
    random = np.random.default_rng(3)
    lengths = [bootstrap.block_length(_autocorrelated(1000, rho, random)) for rho in (0.0, 0.5, 0.9)]
    assert lengths == sorted(lengths)
    assert lengths[0] == 10
    assert lengths[2] > 30


def test_constant_steps_have_no_interval():
    ones = np.ones(50)
    assert bootstrap.interval(bootstrap.throughput_draws([(ones, ones * 0.5)], (0,))) == (2.0, 2.0)


def test_same_input_same_draws():
    seconds = np.random.default_rng(4).random(100) + 1
    draws = [bootstrap.throughput_draws([(seconds, seconds**2)], (1, 8)) for _ in range(2)]
    np.testing.assert_array_equal(*draws)
