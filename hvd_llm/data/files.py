"""Writing that is all or nothing: under another name first, then renamed into place."""

import fcntl
import os
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from hvd_llm.errors import UserError

LOCK = ".lock"


@contextmanager
def whole_file(path: Path, work: Path):
    """Open `path` for writing bytes; it appears, complete and on disk, when the body ends.

    Until then it lies in `work`, a folder on the same disk, which goes in the end, with whatever a killed process left.
    """
    draft = work / f".{path.name}.{os.getpid()}"
    try:
        with open(draft, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def whole_folder(path: Path, work: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder `path` with the files that `fill` puts into it, by way of `work`, unless it is there already."""
    if path.exists():
        return
    draft = work / f".{path.name}.{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        fill(draft)
        for file in draft.rglob("*"):
            if file.is_file():
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
        os.rename(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def only_one(folder: Path):
    """Keep other processes that ask for the same folder out until the body ends, or this process does.

    Raises:
        UserError: another one is inside.
    """
    with open(folder / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another `hvd-llm prepare` is writing to {folder}; wait for it or give another --out"
            ) from None
        yield
        (folder / LOCK).unlink()
