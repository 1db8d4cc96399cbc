"""SOURCE arguments to pieces: which files, read how, and cut where.

A source is `embedded`, a file, a folder, a glob, a folder saved by `datasets`, or a URL that fsspec knows.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

import fsspec

from hvd_llm.data import embedded
from hvd_llm.errors import UserError, first_line

PIECE_BYTES = 64 * 2**20  # text and JSONL files longer than this are read in pieces
_PACKED = {".gz", ".bz2", ".xz", ".zst"}
_READERS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
}


@dataclass(frozen=True)
class Piece:
    """Part of one file that one reader takes in one go: bytes [start, stop), stop -1 for the whole file."""

    reader: str
    url: str
    start: int
    stop: int
    bytes: int


@contextmanager
def accessing(url: str):
    """Turn whatever a file system raises into a UserError that names `url`."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{url} does not exist") from None
    except (ImportError, ValueError) as error:  # no such protocol, or its package is not installed
        raise UserError(f"cannot open {url}: {first_line(error)}") from None
    except Exception as error:  # every backend has its own types: credentials, connection, permission, bad archive
        raise UserError(f"cannot read {url}: {type(error).__name__}: {first_line(error)}") from None


def find(source: str, kind: str, split: str) -> tuple[list[Piece], list[str]]:
    """List the pieces of one SOURCE in a fixed order, and what identifies its present content.

    Args:
        split: which part of a folder saved by `datasets` to take, if it has several.

    Raises:
        UserError: nothing there, no permission, or a file system whose package is missing.
    """
    if source == embedded.NAME:
        if kind == "tag":
            raise UserError("the source 'embedded' has no labels for words; --kind tag needs CoNLL files or the like")
        pieces = [Piece("embedded", path, 0, -1, size) for path, size in embedded.files()]
        return pieces, [f"{piece.url} {piece.bytes}" for piece in pieces]
    with accessing(source):
        system, path = fsspec.core.url_to_fs(source)
        files = _files(system, path)
        if not files:
            raise UserError(f"{source} has no files (hidden ones do not count)")
        pieces, identity = [], []
        for file in files:
            info = system.info(file)
            pieces += _cut(_reader(system, file, kind, split), system.unstrip_protocol(file), info.get("size") or 0)
            changed = next(
                (info[name] for name in ("mtime", "LastModified", "last_modified", "ETag", "created") if name in info),
                "",
            )
            identity.append(f"{file} {info.get('size')} {changed}")
    return pieces, identity


def _files(system: fsspec.AbstractFileSystem, path: str) -> list[str]:
    """The files that `path` stands for, sorted."""
    if any(character in path for character in "*?[") and not system.exists(path):
        return sorted(file for file in system.glob(path) if system.isfile(file))
    if not system.isdir(path):
        system.info(path)  # raises FileNotFoundError
        return [path]
    if _saved_by_datasets(system, path):
        return [path]
    inside = (file for file in system.find(path) if not _hidden(file[len(path) :]))
    return sorted(inside)


def _saved_by_datasets(system: fsspec.AbstractFileSystem, path: str) -> bool:
    return any(system.exists(f"{path.rstrip('/')}/{name}") for name in ("dataset_dict.json", "dataset_info.json"))


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(path.strip("/")).parts)


def _reader(system: fsspec.AbstractFileSystem, path: str, kind: str, split: str) -> str:
    """Name of the reader for a file, by its ending."""
    if system.isdir(path):
        return f"datasets:{split}"
    endings = [ending.lower() for ending in PurePosixPath(path).suffixes]
    if endings and endings[-1] in _PACKED:
        endings.pop()
    plain = "conll" if kind == "tag" else "text"
    reader = _READERS.get(endings[-1], plain) if endings else plain
    if reader == "text" and kind == "classify":
        raise UserError(f"{path} has no labels: --kind classify needs JSONL, CSV, TSV, Parquet or `embedded`")
    return reader


def _cut(reader: str, url: str, size: int) -> list[Piece]:
    packed = PurePosixPath(url).suffix.lower() in _PACKED
    if reader not in ("text", "jsonl") or packed or size <= PIECE_BYTES:
        return [Piece(reader, url, 0, -1, size)]
    return [
        Piece(reader, url, start, min(start + PIECE_BYTES, size), min(PIECE_BYTES, size - start))
        for start in range(0, size, PIECE_BYTES)
    ]


def group(pieces: list[Piece], target: int) -> list[list[Piece]]:
    """Group neighbours so that each group has about `target` bytes; the grouping depends on the pieces alone."""
    groups, size = [], target
    for piece in pieces:
        if size >= target:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += piece.bytes
    return groups
