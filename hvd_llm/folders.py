"""Folders that commands fill: their names, whether they can be filled, their run.json. The standard library alone."""

import json
import os
import time
from pathlib import Path
from typing import Any

from hvd_llm.errors import UserError


def default(name: str, size: int) -> Path:
    """runs/NAME-nRANKS-TIME."""
    return Path(f"runs/{Path(name).stem}-n{size}-{time.strftime('%Y%m%d-%H%M%S')}")


def make_writable(folder: Path) -> None:
    """Make the folder, and find out whether a file can be made in it (OSError)."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".probe"
    probe.touch()
    probe.unlink()


def make_empty(folder: Path) -> None:
    """Make the folder that `--out` names, or take it if it is empty.

    Raises:
        UserError: it holds something already, or cannot be written.
    """
    try:
        make_writable(folder)
        if any(folder.iterdir()):
            raise UserError(f"--out is {str(folder)!r}, which is not empty: give a new folder")
    except OSError as error:
        raise UserError(f"--out is {str(folder)!r}, which cannot be written: {error}") from None


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Replace run.json atomically; a host that crashes leaves the old one or the new one."""
    draft = folder / ".run.json.writing"
    with open(draft, "w") as file:
        file.write(json.dumps(record, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.rename(folder / "run.json")
