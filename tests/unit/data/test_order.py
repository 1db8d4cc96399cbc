"""Permutations without state."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hvd_llm.data import order

KEYS = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(size=st.integers(1, 3000), secret=KEYS)
def test_permutation_is_a_bijection(size, secret):
    places = order.permute(np.arange(size), size, secret)
    assert places.dtype == np.int64
    assert np.array_equal(np.sort(places), np.arange(size))


@settings(deadline=None)
@given(size=st.integers(1, 2**40), secret=KEYS, data=st.data())
def test_any_position_is_computed_on_its_own(size, secret, data):
    positions = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    together = order.permute(positions, size, secret)
    alone = [int(order.permute(np.array([position]), size, secret)[0]) for position in positions]
    assert together.tolist() == alone
    assert all(0 <= place < size for place in alone)


def test_permutations_shuffle():
    """Neighbours do not stay neighbours, and another key is another order."""
    size = 10_000
    first, second = (order.permute(np.arange(size), size, order.key("a", n)) for n in range(2))
    assert (first == second).sum() < 10  # 1 expected
    assert abs(np.corrcoef(np.arange(size), first)[0, 1]) < 0.05
    assert (np.abs(np.diff(first)) == 1).sum() < 20  # 2 expected


def test_every_place_of_a_small_domain_is_about_equally_likely():
    counts = np.zeros((5, 5))
    for seed in range(1500):
        counts[np.arange(5), order.permute(np.arange(5), 5, order.key(seed))] += 1
    assert np.abs(counts / 300 - 1).max() < 0.25


def test_uniform_depends_on_row_and_column_alone():
    numbers = order.uniform(7, np.array([3, 900, 3]), 1000)
    assert np.array_equal(numbers[0], numbers[2])
    assert np.array_equal(order.uniform(7, np.array([900]), 10)[0], numbers[1, :10])
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    assert abs(numbers[:2].mean() - 0.5) < 0.03
    assert abs(np.corrcoef(numbers[0], numbers[1])[0, 1]) < 0.1
