"""PyTorch and transformers are half a million objects, none of which is ever garbage."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting() -> Iterator[None]:
    """For what takes seconds to import: the collector does not look at it, meanwhile or later.

    Nor does Python when it exits. A third of a command's time to start and end was such looks.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
