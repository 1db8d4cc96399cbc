"""Folders of benchmarks (`make bench` and its kin), each a section of the report: who is how fast, side by side."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis import figures, json_file
from analysis.errors import AnalysisError
from analysis.sections import Section

SCHEMA = "hvd_llm.bench/2"
_MOST_ROWS, _LARGEST = 400, 1e15


@dataclass(frozen=True)
class Kind:
    """What is shown of a kind of benchmark.

    Attributes:
        named: columns that name a row.
        value, spread: columns of what is drawn, and of its quartiles.
        axis: what `value` is.
    """

    title: str
    text: str
    named: tuple[str, ...]
    value: str
    spread: tuple[str, str] | tuple[()]
    axis: str


_QUARTILES = ("lower_quartile", "upper_quartile")
KINDS = {
    "side_by_side": Kind(
        "hvd_llm beside its peers",
        "hvd_llm's step time over each contender's, within a round: below 1 it is faster. Quartiles over rounds.",
        ("controller", "contender"),
        "ratio",
        _QUARTILES,
        "our step time / its step time",
    ),
    "network": Kind(
        "Between hosts",
        "A step of the slowest rank; quartiles over rounds. Bytes are what a host sent in a step, by its interface's "
        "own counters; ratios are within a round, to the contender in column over.",
        ("controller", "rate", "contender"),
        "ms",
        ("lower_ms", "upper_ms"),
        "ms per step",
    ),
    "loss": Kind(
        "What sending less costs in loss",
        "Validation loss after equally many tokens; loss_then is that at the time when the fastest was through.",
        ("contender",),
        "validation_loss",
        (),
        "validation loss",
    ),
    "kernels": Kind(
        "What compressors compute",
        "Speed of a compressor's kernels over that of a plain copy of the same bytes; quartiles over rounds.",
        ("mib", "kernel"),
        "share_of_copy",
        _QUARTILES,
        "share of a copy's speed",
    ),
    "reports": Kind(
        "What reports cost",
        "Seconds that a report took, and the memory that it needed at most.",
        ("report",),
        "seconds",
        (),
        "seconds",
    ),
}


def is_benchmark(path: Path) -> bool:
    return (path / "bench.json").exists()


def section(path: Path, number: int) -> Section:
    """What the report shows of the benchmark in folder `path`.

    Args:
        number: from 1, which names its files.

    Raises:
        AnalysisError: bench.json or ratios.csv cannot be read, or is of a kind that this does not know.
    """
    where = path / "bench.json"
    about = json_file.read(where)
    if about.get("schema") != SCHEMA:
        raise AnalysisError(f"{where} has schema {about.get('schema')!r:.80}; this reads {SCHEMA!r}")
    name = json_file.need(about, "kind", str, str(where))
    if name not in KINDS:
        raise AnalysisError(f"{where}: 'kind' is {name!r:.80}; this knows {', '.join(KINDS)}")
    kind, ranks = KINDS[name], json_file.need(about, "ranks", int, str(where))
    table = _table(path / "ratios.csv", kind)
    shared = [column for column in kind.named[:-1] if table[column].nunique() == 1]
    labels = table[[column for column in kind.named if column not in shared]].agg(", ".join, axis=1)
    labels = labels.str.replace(",", ",\n").str.replace(",\n ", ", ")  # long ones are contenders with settings
    told = ", ".join([f"{ranks} rank{'s' * (ranks != 1)}", *(f"{table[column].iloc[0]}" for column in shared)])
    plot = figures.side_by_side(labels, table[kind.value], table[list(kind.spread)], kind.axis)
    title = f"{kind.title}: {path.name}"
    text = f"{kind.text} Here: {told}."
    lines = 1 + labels.str.count("\n").max()
    return Section(f"benchmark-{number}", title, text, table, plot, table, 1 + len(table) * (0.15 + 0.15 * lines))


def _table(path: Path, kind: Kind) -> pd.DataFrame:
    numbers = [kind.value, *kind.spread]
    text, empty = dict.fromkeys(kind.named, str), {name: [""] for name in numbers}
    try:
        table = pd.read_csv(path, nrows=_MOST_ROWS + 1, dtype=text, keep_default_na=False, na_values=empty)
    except OSError as error:
        raise AnalysisError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise AnalysisError(f"{path} is not a table: {str(error).splitlines()[0]:.150}") from None
    missing = [column for column in (*kind.named, *numbers) if column not in table]
    if missing or table.empty:
        raise AnalysisError(f"{path} has no {'rows' if not missing else f'column {missing[0]!r}'}")
    drawn = table[numbers]
    if not all(dtype.kind in "if" for dtype in drawn.dtypes) or (drawn.abs() > _LARGEST).any(axis=None):
        raise AnalysisError(f"{path}: {', '.join(numbers)} must be numbers, of at most {_LARGEST:g}")
    if len(table) > _MOST_ROWS:
        raise AnalysisError(f"{path} has more than the {_MOST_ROWS} rows that can be drawn")
    return table
