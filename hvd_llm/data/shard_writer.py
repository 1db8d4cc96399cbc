"""Write one shard from the tokens of many parts."""

import hashlib
import json
from pathlib import Path

import numpy as np

from hvd_llm.data.files import whole_file
from hvd_llm.data.shards import LABEL_TYPES, OFFSET_TYPE
from hvd_llm.data.spool import Tokens


def write_shard(out: Path, work: Path, name: str, part_of: np.ndarray, inside: np.ndarray) -> dict:
    """Write NAME.tokens, NAME.offsets and perhaps NAME.labels, unless a record of them is there already.

    Args:
        part_of, inside: for each document, in the shard's order, its part and its number in the part; int64 [D].

    Returns:
        the shard's entry for the index.
    """
    record = work / f"{name}.json"
    if record.exists():
        return json.loads(record.read_bytes())
    parts = {part: Tokens(work / f"tokens-{part:05d}") for part in np.unique(part_of).tolist()}
    documents = [(parts[part], number) for part, number in zip(part_of.tolist(), inside.tolist(), strict=True)]
    spans = [(part, int(part.starts[number]), int(part.starts[number + 1])) for part, number in documents]
    starts = np.cumsum([0] + [stop - start for _, start, stop in spans], dtype=OFFSET_TYPE)
    files = {
        "tokens": _write(
            out / f"{name}.tokens", work, (_bytes(part.tokens, start, stop) for part, start, stop in spans)
        ),
        "offsets": _write(out / f"{name}.offsets", work, [starts.tobytes()]),
    }
    labels = documents[0][0].labels
    if labels is not None and labels.dtype == LABEL_TYPES["tag"]:
        files["labels"] = _write(
            out / f"{name}.labels", work, (_bytes(part.labels, start, stop) for part, start, stop in spans)
        )
    elif labels is not None:
        values = np.array([part.labels[number] for part, number in documents], LABEL_TYPES["classify"])
        files["labels"] = _write(out / f"{name}.labels", work, [values.tobytes()])
    entry = {"name": name, "documents": len(documents), "tokens": int(starts[-1]), "files": files}
    with whole_file(record, work) as file:
        file.write(json.dumps(entry).encode())
    return entry


def _bytes(values: np.ndarray, start: int, stop: int) -> bytes:
    return values[start:stop].astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _write(path: Path, work: Path, chunks) -> str:
    """Write the chunks to `path` and return their SHA-256."""
    sha256 = hashlib.sha256()
    with whole_file(path, work) as file:
        for chunk in chunks:
            file.write(chunk)
            sha256.update(chunk)
    return sha256.hexdigest()
