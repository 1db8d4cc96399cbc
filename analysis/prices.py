"""What `hvd-llm price` found out: what buckets send and compute, by compressor, size of buckets and number of ranks."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import json_file
from analysis.errors import AnalysisError

SCHEMA = "hvd_llm.prices/1"
KINDS = {
    "sum": ("sums", "sum_bytes"),
    "gather": ("gathers", "gather_bytes"),
    "all_to_all": ("all_to_alls", "all_to_all_bytes"),
}
_NUMBERS = ("ready_s", "pass_s", "kernel_s", *(name for pair in KINDS.values() for name in pair))
_CUT = ["bucket", "gradient_bytes", *(count for count, _ in KINDS.values())]  # what must be the same to go on
_FEWEST = 3  # numbers of ranks that tell how prices go on
_MOST = 1000  # operations of a bucket
_COLUMNS = ("ranks", "compressor", "bucket_mb", "bucket", "gradient_bytes", *_NUMBERS)


@dataclass(frozen=True)
class Bucket:
    """Attributes:
    ready_s: from the start of a pass to the last gradient; the pass takes `pass_s`.
    kernel_s: of computing, in all rounds together.
    operations: kind and bytes that a rank sends, one after the other.
    """

    ready_s: float
    pass_s: float
    kernel_s: float
    operations: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Prices:
    """Attributes:
    table: rows of prices.csv.
    """

    path: Path
    table: pd.DataFrame

    @property
    def ranks(self) -> list[int]:
        """Numbers of ranks that were priced."""
        return sorted(map(int, self.table["ranks"].unique()))

    @property
    def choices(self) -> list[tuple[str, float]]:
        """Compressors and sizes of buckets (MiB) that were priced."""
        return list(self.table[["compressor", "bucket_mb"]].drop_duplicates().itertuples(index=False, name=None))

    def buckets(self, compressor: str, bucket_mb: float, ranks: int) -> list[Bucket]:
        """In the order in which they are sent; between and beyond the priced numbers of ranks, as prices go on.

        Raises:
            AnalysisError: not priced, or for too few numbers of ranks to go on from.
        """
        rows = self.table[(self.table["compressor"] == compressor) & (self.table["bucket_mb"] == bucket_mb)]
        if rows.empty:
            raise AnalysisError(f"{self.path} has no prices of {compressor} with buckets of {bucket_mb:g} MiB")
        by_ranks = {count: group.sort_values("bucket") for count, group in rows.groupby("ranks")}
        if ranks in by_ranks:
            at = {name: by_ranks[ranks][name].to_numpy(dtype=float) for name in _NUMBERS}
        else:
            at = self._beyond(by_ranks, ranks, compressor)
        return [
            Bucket(at["ready_s"][index], at["pass_s"][index], at["kernel_s"][index], _operations(at, index))
            for index in range(len(at["ready_s"]))
        ]

    def _beyond(self, by_ranks: dict[int, pd.DataFrame], ranks: int, compressor: str) -> dict[str, np.ndarray]:
        """From those whose buckets are cut as those of the most ranks are: embeddings may go by rows among fewer."""
        cut = by_ranks[max(by_ranks)][_CUT].to_numpy()
        alike = {count: group for count, group in by_ranks.items() if np.array_equal(group[_CUT].to_numpy(), cut)}
        if len(alike) < _FEWEST:
            raise AnalysisError(
                f"{self.path} has prices of {compressor} for {len(alike)} numbers of ranks with the same buckets; "
                f"{_FEWEST} are needed to say what {ranks} would send"
            )
        known = np.array(list(alike))
        values = {name: np.stack([group[name].to_numpy(dtype=float) for group in alike.values()]) for name in _NUMBERS}
        return {name: _GROWS.get(name, _sent)(known, value, ranks) for name, value in values.items()}


def _operations(at: dict[str, np.ndarray], bucket: int) -> tuple[tuple[str, float], ...]:
    found = []
    for kind, (count, sent) in KINDS.items():
        if times := round(at[count][bucket]):
            found += [(kind, at[sent][bucket] / times)] * times
    return tuple(found)


# How a number goes on, that is known of some numbers of ranks: (known,), (known, buckets), ranks → (buckets,).


def _stays(known: np.ndarray, values: np.ndarray, ranks: int) -> np.ndarray:
    return values.mean(axis=0)


def _kernels(known: np.ndarray, values: np.ndarray, ranks: int) -> np.ndarray:
    """What every rank sends has to be added up: a line, which does not fall."""
    slope, start = np.polyfit(known, values, 1)
    return np.where(slope > 0, np.maximum(0, start + slope * ranks), values.mean(axis=0))


def _sent(known: np.ndarray, values: np.ndarray, ranks: int) -> np.ndarray:
    """Rings, gathers and shares: a + b n + c / n."""

    def terms(n: np.ndarray) -> np.ndarray:
        return np.stack([np.ones_like(n), n, 1 / n], axis=1)

    found, *_ = np.linalg.lstsq(terms(known.astype(float)), values, rcond=None)
    return np.maximum(0, terms(np.array([float(ranks)]))[0] @ found)


_GROWS = {"ready_s": _stays, "pass_s": _stays, "kernel_s": _kernels}  # the others are `_sent`


def read(path: Path) -> Prices:
    """Read a folder that `hvd-llm price` wrote.

    Raises:
        AnalysisError: it is none.
    """
    about = json_file.read(path / "run.json")
    if about.get("schema") != SCHEMA:
        raise AnalysisError(f"{path}/run.json has schema {about.get('schema')!r:.80}; this reads {SCHEMA!r}")
    file = path / "prices.csv"
    try:
        table = pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise AnalysisError(f"cannot read {file}: {str(error).splitlines()[0]:.150}") from None
    if missing := [name for name in _COLUMNS if name not in table]:
        raise AnalysisError(f"{file} has no column {missing[0]!r}")
    numbers = table[["ranks", "bucket_mb", "bucket", *_NUMBERS]].apply(pd.to_numeric, errors="coerce")
    if table.empty or not np.isfinite(numbers).all(axis=None) or (numbers < 0).any(axis=None):
        raise AnalysisError(f"{file} must hold numbers from 0 in every column but compressor")
    impossible = {
        "a row has fewer than two ranks": numbers["ranks"] < 2,
        "a bucket is ready after its pass": (numbers["ready_s"] > numbers["pass_s"]) | (numbers["pass_s"] == 0),
        f"a bucket has more than {_MOST} operations": (numbers[[count for count, _ in KINDS.values()]] > _MOST).any(
            axis=1
        ),
    }
    for what, rows in impossible.items():
        if rows.any():
            raise AnalysisError(f"{file}: {what}")
    return Prices(path, table.assign(**{name: numbers[name] for name in numbers}))
