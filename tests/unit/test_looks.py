"""How often is looked: at what is awaited, ever further apart, with a clock of its own; by Horovod."""

from types import SimpleNamespace

import pytest

from hvd_llm.comm import patience
from hvd_llm.comm.connect import cycle_ms


@pytest.mark.parametrize("lasts", [1e-5, 3e-3, 0.05, 2.0])
def test_a_wait_becomes_a_tenth_longer_at_most_and_long_ones_are_looked_at_a_thousand_times_a_second(
    lasts, monkeypatch
):
    now, pauses = 100.0, []

    def sleep(seconds):
        nonlocal now
        now += seconds
        pauses.append(seconds)

    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    wait = patience.Patience()
    while now - 100 < lasts:
        wait.pause()
    assert now - 100 <= 1.1 * lasts + patience.LEAST_S
    assert len(pauses) <= 60 + 1100 * lasts


@pytest.mark.parametrize(
    ("gpu", "wakes", "groups", "milliseconds"),
    [(True, True, True, 1), (False, True, False, 100), (False, True, True, 10), (False, False, False, 10)],
)
def test_horovod_looks_seldom_where_it_wakes_up_for_all_there_is(gpu, wakes, groups, milliseconds):
    assert cycle_ms(gpu, wakes, groups) == milliseconds
