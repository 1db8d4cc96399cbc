"""Looking at what is awaited, ever further apart; with a clock of its own."""

import pytest

from hvd_llm.comm import patience


@pytest.mark.parametrize("lasts", [1e-5, 3e-3, 0.05, 2.0])
def test_a_wait_becomes_a_tenth_longer_at_most_and_long_ones_are_looked_at_a_thousand_times_a_second(
    lasts, monkeypatch
):
    now, pauses = 100.0, []

    def sleep(seconds):
        nonlocal now
        now += seconds
        pauses.append(seconds)

    monkeypatch.setattr(patience.time, "monotonic", lambda: now)
    monkeypatch.setattr(patience.time, "sleep", sleep)
    wait = patience.Patience()
    while now - 100 < lasts:
        wait.pause()
    assert now - 100 <= 1.1 * lasts + patience.LEAST_S
    assert len(pauses) <= 60 + 1100 * lasts
