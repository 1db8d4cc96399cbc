"""Horovod's own timeline → what each kind of operation took, every fused batch counted once.

Rank 0 writes the file: an array of trace events in which a "process" is a tensor. `B` and `E` begin and end its
negotiation, then its operation, and within that what Horovod does for it (horovod/common/timeline.cc). Three things
mislead: what is done for a fused batch is written once for every tensor in it, one after the other; ranks say when
they are ready (`X`) only while the response cache does not know the tensor; and a run that was killed may leave half an
event.
"""

import functools
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from analysis.errors import AnalysisError

_PIECE = 2**22  # characters that are parsed at a time
_LONGEST = 2**20  # of an event
_END = re.compile(r"\}\s*,\s*(?=\{)")  # of an event that another one follows; objects within one follow a name
_BYTES = {
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "int16": 2,
    "uint16": 2,
    "float16": 2,
    "bfloat16": 2,
    "int32": 4,
    "float32": 4,
}
_BYTES |= {"int64": 8, "float64": 8}
_NEGOTIATE = "NEGOTIATE_"
_LIBRARIES = ("MPI_", "GLOO_", "NCCL_", "CCL_", "DDL_")
_BAR = {"delay": 3, "leave": False, "disable": None}


@dataclass
class Operations:
    """All of one type, such as ALLREDUCE.

    Attributes:
        negotiation_us: in which at least one tensor waited for all ranks to be ready for it, and to know that.
        waiting: tensors that do now.
        since_us: when the first of these began.
    """

    tensors: int = 0
    bytes: int = 0
    negotiations: int = 0
    negotiation_us: int = 0
    waiting: int = 0
    since_us: int = 0


@dataclass
class Activity:
    """What Horovod does for some tensors at once, added up: such as GLOO_ALLREDUCE of ALLREDUCE.

    Attributes:
        time_us: of each batch from its first tensor's beginning to its last one's end.
    """

    batches: int = 0
    tensors: int = 0
    time_us: int = 0


@dataclass
class Late:
    """How often a rank was the last to be ready, and how long the first one had waited by then."""

    times: int = 0
    wait_us: int = 0


@dataclass
class _Batch:
    """Tensors that one activity is for: begun, and not yet ended."""

    what: tuple[str, str]
    activity: Activity
    began: int
    open: int = 0


@dataclass
class _Tensor:
    under_way: list[str] = field(default_factory=list)  # the innermost last
    ready: list[tuple[int, int]] = field(default_factory=list)  # when, which rank
    batch: _Batch | None = None


class Timeline:
    """What a file says.

    Attributes:
        operations: by type.
        activities: by type of operation, and name.
        late: by rank.
        cut: whether the file ends within an event.
    """

    def __init__(self, path: Path):
        """Read a file of any size, piece by piece.

        Raises:
            AnalysisError: unreadable, or not Horovod's; or nothing was exchanged.
        """
        self.operations: defaultdict[str, Operations] = defaultdict(Operations)
        self.activities: defaultdict[tuple[str, str], Activity] = defaultdict(Activity)
        self.late: defaultdict[int, Late] = defaultdict(Late)
        self.cut = False
        self._tensors: defaultdict[int, _Tensor] = defaultdict(_Tensor)
        self._last: _Batch | None = None  # the last event began its activity for one more tensor
        try:
            for events in self._pieces(path):
                for event in events:
                    self._add(event)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
            raise AnalysisError(f"{path} is not a timeline of Horovod: {type(error).__name__} {error!s:.100}") from None
        if not self.operations:
            raise AnalysisError(f"{path} holds no operation: nothing was exchanged while it was written")

    def _pieces(self, path: Path) -> Iterator[list[dict]]:
        """Its events, many at a time."""
        try:
            bar = tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, **_BAR)
            with open(path, encoding="utf-8", errors="replace") as file, bar:
                rest = file.read(_PIECE).lstrip()
                if not rest.startswith("["):
                    raise ValueError("it is no array of events")
                rest = rest[1:]
                while piece := file.read(_PIECE):
                    bar.update(len(piece))
                    rest += piece
                    ends = [match.end() for match in _END.finditer(rest, max(0, len(rest) - _LONGEST))]
                    if ends:
                        yield json.loads(f"[{rest[: ends[-1]].rstrip().rstrip(',')}]")
                        rest = rest[ends[-1] :]
                    if len(rest) > _LONGEST:
                        raise ValueError(f"an event of more than {_LONGEST} characters")
        except OSError as error:
            raise AnalysisError(f"cannot read {path}: {error.strerror}") from None
        yield self._end(rest.strip())

    def _end(self, rest: str) -> list[dict]:
        """The file's last events, of which the very last may be cut off."""
        try:
            return json.loads("[" + rest.removesuffix("]").rstrip().rstrip(",") + "]")
        except ValueError:
            self.cut = True
        ends = [match.start() + 1 for match in _END.finditer(rest)]
        return json.loads(f"[{rest[: ends[-1]]}]") if ends else []

    def _add(self, event: dict) -> None:
        phase = event["ph"]
        if phase in "Mi":
            return
        now, tensor = event["ts"], self._tensors[event["pid"]]
        if phase == "B":
            self._begin(tensor, event["name"], now)
            return
        self._last = None
        if phase == "X":
            tensor.ready.append((now, int(event["name"])))
        elif tensor.under_way:  # not what had begun before the file
            self._finish(tensor, now, event.get("args", {}))

    def _begin(self, tensor: _Tensor, name: str, now: int) -> None:
        if tensor.under_way:
            what, batch = (tensor.under_way[0], name), self._last
            if batch is None or batch.what != what:
                batch = self._last = _Batch(what, self.activities[what], now)
                batch.activity.batches += 1
            batch.activity.tensors += 1
            batch.open += 1
            tensor.batch = batch
        elif name.startswith(_NEGOTIATE):
            found = self.operations[name.removeprefix(_NEGOTIATE)]
            found.since_us = found.since_us if found.waiting else now
            found.waiting += 1
        tensor.under_way.append(name)

    def _finish(self, tensor: _Tensor, now: int, args: dict) -> None:
        name = tensor.under_way.pop()
        if tensor.under_way:
            batch = tensor.batch
            batch.open -= 1
            if not batch.open:
                batch.activity.time_us += now - batch.began
        elif name.startswith(_NEGOTIATE):
            found = self.operations[name.removeprefix(_NEGOTIATE)]
            found.negotiations += 1
            found.waiting -= 1
            found.negotiation_us += 0 if found.waiting else now - found.since_us
            if len(tensor.ready) > 1:
                self._note_late(sorted(tensor.ready))
            tensor.ready.clear()
        else:
            found = self.operations[name]
            found.tensors += 1
            if args:
                found.bytes += _size(args["dtype"], args["shape"])

    def _note_late(self, ready: list[tuple[int, int]]) -> None:
        (first, _), (last, rank) = ready[0], ready[-1]
        self.late[rank].times += 1
        self.late[rank].wait_us += last - first

    @property
    def moving_s(self) -> float:
        """Seconds in all of what libraries do for Horovod: their names begin those of activities."""
        return sum(found.time_us for (_, name), found in self.activities.items() if name.startswith(_LIBRARIES)) / 1e6

    @property
    def waiting_s(self) -> float:
        """Seconds in all of negotiations."""
        return sum(found.negotiation_us for found in self.operations.values()) / 1e6

    def table(self) -> pd.DataFrame:
        """A row per operation and activity, the longest first; the negotiation of a type is one of its activities.

        Columns operation, activity, batches, tensors, seconds, mb (megabytes of all the operation's tensors).
        """
        rows = [
            (type_, "negotiation", found.negotiations, found.negotiations, found.negotiation_us / 1e6, math.nan)
            for type_, found in self.operations.items()
        ]
        rows += [
            (type_, name, found.batches, found.tensors, found.time_us / 1e6, self.operations[type_].bytes / 1e6)
            for (type_, name), found in self.activities.items()
        ]
        columns = ["operation", "activity", "batches", "tensors", "seconds", "mb"]
        return pd.DataFrame(rows, columns=columns).sort_values("seconds", ascending=False, ignore_index=True)


@functools.cache
def _size(dtype: str, shape: str) -> int:
    """Bytes of a tensor, whose shape is written like "[2, 3]"."""
    return _BYTES[dtype] * math.prod(map(int, re.findall(r"\d+", shape)))
