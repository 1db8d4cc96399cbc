"""The one exception of the analysis."""

import difflib
from collections.abc import Iterable


class AnalysisError(Exception):
    """Something in the run folders or on the command line that no honest figure can be made from.

    The message is one sentence that names the file or setting. `analysis.__main__` prints it without
    a traceback and exits with code 2; anything else that is raised is a fault of ours.
    """


class TooFewStepsError(AnalysisError):
    """A launch too short to measure, such as one that was killed at once; others of its run may do."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of `allowed`, or the list when none is close."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; there is: {', '.join(allowed) or 'nothing'}"
