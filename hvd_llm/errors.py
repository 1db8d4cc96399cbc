"""The one exception that stands for a mistake of the user, and the words that mend it."""

import difflib
import errno

# A path that nobody can use, as opposed to a fault of ours.
_UNUSABLE = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP}


class UserError(Exception):
    """A mistake in what the user gave: a setting, a file, the environment.

    The message is one sentence that names the setting or file, its value and what is allowed.
    `hvd_llm.__main__` prints it without a traceback and exits with code 2; anything else that is
    raised is a fault of ours and keeps its traceback.

    Attributes:
        shared: every rank raises the same, so that one of them is enough to print it.
    """

    def __init__(self, sentence: str, shared: bool = False):
        super().__init__(sentence)
        self.shared = shared


def mistake(error: Exception) -> UserError | None:
    """What the user did to make our code raise `error`, if that is known: a path is too long, or not for them."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno in _UNUSABLE:
        return UserError(f"cannot use {str(error.filename)!r}: {error.strerror.lower()}")
    return None


def nearest(name: str, allowed) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of `allowed`, or the list when none is close."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; allowed: {', '.join(allowed)}"


def first_line(error: Exception) -> str:
    """What somebody else's exception says, cut to one line; its type if it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
