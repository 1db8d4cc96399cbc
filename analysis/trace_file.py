"""One rank's trace file: a checked header and its records, in pieces that fit in memory.

The layout is in docs/run_folder.md: a 4,096-byte JSON header that describes the records, then records
until the end. A file cut inside a record lost only that record.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from analysis import json_file
from analysis.errors import AnalysisError

SCHEMA = "hvd_llm.trace/1"
HEADER_BYTES = 4096
CHUNK_RECORDS = 2**20

# Clocks count ns since boot or epoch: 2**62 ns are 146 years. Sums and differences below stay in int64.
LATEST_NS = 2**62
LARGEST_AMOUNT = 2**53

_FIELDS = ("start_ns", "end_ns", "amount", "step", "index", "kind")
_INTEGER = re.compile(r"<[iu][248]|\|?[iu]1")


@dataclass(frozen=True)
class TraceFile:
    """A trace whose header was checked; its records are read, and checked, by `chunks`."""

    path: Path
    rank: int
    size: int
    kinds: dict[str, int]  # name → number in the records
    record: np.dtype
    count: int  # whole records in the file
    first: int = 0  # record to begin with

    def chunks(self, records: int = CHUNK_RECORDS) -> Iterator[np.ndarray]:
        """Yield structured arrays of about `records` records, cut between two steps.

        Fields are those of the header's record; times and amounts are checked to be plausible.

        Raises:
            AnalysisError: unreadable, or a record that cannot be true.
        """
        done = self.first
        while done < self.count:
            want = min(records, self.count - done)
            try:
                chunk = np.fromfile(self.path, self.record, want, offset=HEADER_BYTES + done * self.record.itemsize)
            except OSError as error:
                raise AnalysisError(f"cannot read {self.path}: {error.strerror}") from None
            if len(chunk) < want:
                raise AnalysisError(f"{self.path} became shorter while it was read")
            if done + want < self.count:
                changes = np.flatnonzero(np.diff(chunk["step"]))
                chunk = chunk[: changes[-1] + 1] if len(changes) else chunk
            self._check(chunk, done)
            done += len(chunk)
            yield chunk

    def _check(self, chunk: np.ndarray, first: int) -> None:
        """Refuse records that cannot be true; `first` is the number of the chunk's first record."""
        start, end, amount = chunk["start_ns"], chunk["end_ns"], chunk["amount"]
        clock = chunk["kind"] == self.kinds.get("clock", -1)  # a clock's amount is an offset, of either sign
        wrong = [
            (~np.isin(chunk["kind"], list(self.kinds.values())), "kind", "is not in the header's table"),
            (end < start, "end_ns", "lies before start_ns"),
            ((start < 0) | (start > LATEST_NS), "start_ns", "is not a time a clock can show"),
            ((end < 0) | (end > LATEST_NS), "end_ns", "is not a time a clock can show"),
            (~clock & ((amount < 0) | (amount > LARGEST_AMOUNT)), "amount", "is not a possible amount"),
        ]
        for mask, field, reason in wrong:
            if mask.any():
                at = int(np.argmax(mask))
                raise AnalysisError(f"{self.path}, record {first + at}: {field} = {chunk[field][at]} {reason}")

    def tail(self, records: int) -> "TraceFile":
        """The same, of about the last `records` records. Its first step may be cut."""
        return replace(self, first=max(0, self.count - records))

    def sha256(self) -> str:
        """Hexadecimal digest of the whole file."""
        try:
            with open(self.path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise AnalysisError(f"cannot read {self.path}: {error.strerror}") from None


def open_trace(path: Path) -> TraceFile:
    """Read and check the header of a trace.

    Raises:
        AnalysisError: unreadable, empty, foreign, of another schema, or a header that contradicts itself.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEADER_BYTES)
        bytes_ = path.stat().st_size
    except OSError as error:
        raise AnalysisError(f"cannot read {path}: {error.strerror}") from None
    if len(head) < HEADER_BYTES:
        raise AnalysisError(f"{path} is not a trace: it has {len(head)} bytes, fewer than a header's {HEADER_BYTES}")
    if not head.startswith(b"{"):
        raise AnalysisError(f"{path} is not a trace: it does not begin with a {SCHEMA} header")
    header = json_file.parse(head, f"the header of {path}")
    if header.get("schema") != SCHEMA:
        raise AnalysisError(f"{path} has schema {header.get('schema')!r:.80}; this reads {SCHEMA!r}")
    rank, size = (json_file.need(header, key, int, str(path)) for key in ("rank", "size"))
    if not 0 <= rank < size:
        raise AnalysisError(f"{path}: rank {rank} of size {size} is not possible")
    record = _record(json_file.need(header, "record", list, str(path)), path)
    return TraceFile(
        path=path,
        rank=rank,
        size=size,
        kinds=_kinds(json_file.need(header, "kinds", dict, str(path)), path),
        record=record,
        count=(bytes_ - HEADER_BYTES) // record.itemsize,
    )


def _record(fields: list, path: Path) -> np.dtype:
    """The records' dtype. Only plain little-endian integers: a header must not be able to name objects."""
    plain = [
        field
        for field in fields
        if isinstance(field, list)
        and len(field) == 2
        and all(isinstance(part, str) for part in field)
        and _INTEGER.fullmatch(field[1])
    ]
    names = [field[0] for field in plain]
    if len(plain) != len(fields) or len(set(names)) != len(names) or not set(_FIELDS) <= set(names):
        raise AnalysisError(f"{path}: 'record' must list the integer fields {', '.join(_FIELDS)}")
    return np.dtype([tuple(field) for field in plain])


def _kinds(table: dict, path: Path) -> dict[str, int]:
    kinds = {}
    for number, kind in table.items():
        name = kind.get("name") if isinstance(kind, dict) else None
        if not (re.fullmatch(r"\d{1,5}", number) and isinstance(name, str)) or name in kinds:
            raise AnalysisError(f"{path}: the entry {number!r:.80} of 'kinds' is not a number with a name of its own")
        kinds[name] = int(number)
    if "step" not in kinds:
        raise AnalysisError(f"{path}: 'kinds' has no 'step'")
    return kinds
