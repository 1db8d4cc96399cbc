"""Tables of throughput by number of devices, as they are published: a CSV with a row per measurement."""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError

# A table is of rows that agree in all of these.
NAMES = ("id", "model", "framework", "hardware", "gpus_per_node", "precision", "seq", "unit")
NUMBERS = ("gpus", "microbatch_per_gpu", "accum", "throughput")
PER_TOKEN = "tok/s"  # the others count sequences or images
_LARGEST = 1e15
# What a note says of a row that was measured elsewhere, or otherwise, than the others.
_FOREIGN = re.compile(r"not a valid baseline|different (?:run|hardware)", re.IGNORECASE)


@dataclass(frozen=True)
class Published:
    """One table, in order of devices. Arrays are (rows,).

    Attributes:
        name: what its rows have in common.
        devices, micro_batch, accumulation: of a row; the micro-batch in sequences per device.
        step_s: seconds of an optimizer step, which takes all of these.
        foreign: notes of rows that were left out for what they say.
    """

    name: str
    devices: np.ndarray
    micro_batch: np.ndarray
    accumulation: np.ndarray
    step_s: np.ndarray
    foreign: tuple[str, ...] = ()

    def among(self, rows: np.ndarray) -> "Published":
        """Only some of its rows."""
        arrays = (self.devices, self.micro_batch, self.accumulation, self.step_s)
        return Published(self.name, *(array[rows] for array in arrays), self.foreign)


def read(path: Path) -> list[Published]:
    """The tables of a file, in its order.

    Raises:
        AnalysisError: unreadable, or a row that is not a measurement.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = csv.reader(file, strict=True)
            names, rows = next(lines, []), list(lines)
    except OSError as error:
        raise AnalysisError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, csv.Error) as error:
        raise AnalysisError(f"{path} is not a table: {str(error).splitlines()[0]:.150}") from None
    missing = [name for name in (*NAMES, *NUMBERS) if name not in names]
    if missing or not rows:
        raise AnalysisError(f"{path} has no {'rows' if not missing else f'column {missing[0]!r}'}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(names):
            raise AnalysisError(f"{path}, line {number}: {len(row)} fields, but the first line names {len(names)}")
    table = pd.DataFrame(rows, columns=names, dtype=str)[[name for name in (*NAMES, *NUMBERS, "note") if name in names]]
    for name in NUMBERS:
        table[name] = _numbers(table[name], path)
    tokens = table["unit"] == PER_TOKEN
    length = pd.Series(1.0, table.index)
    length[tokens] = _numbers(table.loc[tokens, "seq"], path)
    table["step_s"] = table["gpus"] * table["microbatch_per_gpu"] * table["accum"] * length / table["throughput"]
    return list(_tables(table))


def _numbers(column: pd.Series, path: Path) -> pd.Series:
    found = pd.to_numeric(column, errors="coerce")
    wrong = ~((found > 0) & (found < _LARGEST))
    if wrong.any():
        row = int(wrong.idxmax())
        raise AnalysisError(f"{path}, line {row + 2}: {column.name} is {column[row]!r:.60}, not a number above 0")
    return found


def _tables(table: pd.DataFrame) -> Iterator[Published]:
    for _, rows in table.groupby(list(NAMES), sort=False):
        notes = rows["note"] if "note" in rows else pd.Series("", rows.index)
        foreign = notes.str.contains(_FOREIGN)
        kept = rows[~foreign].sort_values(["gpus", "accum"], kind="stable")
        arrays = (kept[name].to_numpy(float) for name in (*NUMBERS[:3], "step_s"))
        yield Published(_name(rows.iloc[0]), *arrays, tuple(notes[foreign]))


def _name(row: pd.Series) -> str:
    length = f", {row['seq']} long" if row["seq"] else ""
    return f"{row['model']}, {row['framework']}, {row['precision']}{length}, {row['hardware']}"
