"""JSON from files that anybody may have written: sizes, types and depth are checked, never trusted."""

import json
from pathlib import Path
from typing import Any

from analysis.errors import AnalysisError

LARGEST_BYTES = 16 * 2**20
LARGEST_INTEGER = 2**53


def parse(text: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object; `where` names its source in the error.

    Raises:
        AnalysisError: not UTF-8, not JSON, not an object, a NaN or an infinity in it, nested too deeply.
    """
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        reason = str(error) if len(str(error)) < 200 else type(error).__name__
        raise AnalysisError(f"{where} is not JSON as expected: {reason}") from None
    if not isinstance(value, dict):
        raise AnalysisError(f"{where} must hold a JSON object, not {type(value).__name__}")
    return value


def _refuse(constant: str):
    raise ValueError(f"{constant} is not a number")


def read(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        AnalysisError: unreadable, too large, or not a JSON object.
    """
    try:
        size = path.stat().st_size
        text = path.read_bytes() if size <= LARGEST_BYTES else b""
    except OSError as error:
        raise AnalysisError(f"cannot read {path}: {error.strerror}") from None
    if size > LARGEST_BYTES:
        raise AnalysisError(f"{path} has {size:,} bytes, more than the {LARGEST_BYTES:,} it may have")
    return parse(text, str(path))


def need(tree: dict, key: str, kind: type, where: str) -> Any:
    """Return `tree[key]`, which must be there and a `kind` (a bool is not an int).

    Raises:
        AnalysisError: missing, of another type, or a number that a float64 cannot hold.
    """
    value = tree.get(key)
    wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    if wrong or (kind is int and abs(value) > LARGEST_INTEGER):
        found = f"{value!r:.80}" if key in tree else "missing"
        raise AnalysisError(f"{where}: {key!r} must be {_WORDS[kind]}, but it is {found}")
    return value


_WORDS = {dict: "an object", list: "a list", str: "a string", int: "a whole number", bool: "true or false"}
