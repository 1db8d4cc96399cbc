"""Waiting without a core: other ranks may compute on it."""

import time

LEAST_S, MOST_S = 50e-6, 1e-3


class Patience:
    """Pauses between the looks of one wait: a tenth of what it has lasted, so that it becomes no more than that longer.

    A look wakes a rank, and takes the core from one that computes: of four ranks on two cores, whose waits last tens of
    milliseconds, looks every 50 microseconds made a step 5 % longer than looks every millisecond.
    """

    def __init__(self):
        self._began = time.monotonic()

    def pause(self) -> None:
        time.sleep(min(MOST_S, max(LEAST_S, (time.monotonic() - self._began) / 10)))
