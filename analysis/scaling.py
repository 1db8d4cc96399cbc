"""Cells (runs of one N and batch), strong and weak series of cells, and their efficiency."""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd

from analysis import bootstrap
from analysis.errors import AnalysisError
from analysis.match import accept
from analysis.measure import Measurement


@dataclass(frozen=True)
class Cell:
    """Repeats: measurements of the same number of ranks and the same global batch."""

    ranks: int
    global_batch: int
    repeats: tuple[Measurement, ...]

    @property
    def batch_per_rank(self) -> Fraction:
        return Fraction(self.global_batch, self.ranks)

    @property
    def throughput(self) -> float:
        """Tokens per second: the mean over repeats of total tokens over total time."""
        return float(np.mean([repeat.tokens.sum() / repeat.step_s.sum() for repeat in self.repeats]))

    @property
    def draws(self) -> np.ndarray:
        """Bootstrap draws of the throughput."""
        values = [(repeat.tokens, repeat.step_s) for repeat in self.repeats]
        return bootstrap.throughput_draws(values, (self.ranks, self.global_batch))

    @property
    def tokens_per_rank(self) -> float:
        """Tokens of one rank in one step."""
        return float(np.mean([repeat.tokens.mean() for repeat in self.repeats])) / self.ranks

    @property
    def steps(self) -> int:
        """Measured steps of all repeats."""
        return sum(len(repeat.step) for repeat in self.repeats)


@dataclass(frozen=True)
class Series:
    """Cells with the same global batch (strong) or the same batch per rank (weak), by number of ranks."""

    kind: str  # "strong" or "weak"
    cells: tuple[Cell, ...]

    @property
    def baseline(self) -> Cell:
        return self.cells[0]

    @property
    def title(self) -> str:
        if self.kind == "strong":
            return f"strong scaling, {self.baseline.global_batch} sequences per step"
        return f"weak scaling, {shown(self.baseline.batch_per_rank)} sequences per rank"


@dataclass(frozen=True)
class Experiment:
    """Everything a report is made of."""

    cells: tuple[Cell, ...]
    series: tuple[Series, ...]
    accepted: dict[str, dict[str, list[str]]]  # differences taken on with --allow
    left_out: tuple[str, ...]  # a sentence for each launch that was not measured
    warmup: int | None

    @property
    def measurements(self) -> list[Measurement]:
        return [repeat for cell in self.cells for repeat in cell.repeats]


def shown(batch: Fraction) -> str:
    return str(batch.numerator) if batch.denominator == 1 else f"{float(batch):.4g}"


def experiment(
    measurements: list[Measurement], allow: Iterable[str] = (), left_out: Iterable[str] = (), warmup: int | None = None
) -> Experiment:
    """Sort measurements into cells and series.

    Raises:
        AnalysisError: two of them differ in what must match, or a batch fits no other's.
    """
    allow = set(allow)
    accepted = accept([one.launch for one in measurements], allow)
    by_cell: dict[tuple[int, int], list[Measurement]] = {}
    for one in measurements:
        by_cell.setdefault((one.launch.size, one.launch.run.global_batch), []).append(one)
    cells = tuple(
        # The order of repeats must not depend on the order of arguments: same input, same bytes.
        Cell(ranks, batch, tuple(sorted(repeats, key=lambda one: (one.name, sorted(one.sha256.items())))))
        for (ranks, batch), repeats in sorted(by_cell.items())
    )
    series = _series(cells)
    lonely = [cell for cell in cells if not any(cell in one.cells for one in series)]
    if len(cells) > 1 and lonely and "train.global_batch" not in allow:
        raise AnalysisError(
            "these runs cannot be measured against each other: train.global_batch is "
            + " but ".join(f"{cell.global_batch} on {cell.ranks} ranks" for cell in cells[:6])
            + f", and {lonely[0].global_batch} on {lonely[0].ranks} is neither another's batch nor another's batch "
            "per rank (accept with --allow train.global_batch)"
        )
    return Experiment(cells, series, accepted, tuple(left_out), warmup)


def _series(cells: tuple[Cell, ...]) -> tuple[Series, ...]:
    found = []
    for kind, key in (("weak", lambda cell: cell.batch_per_rank), ("strong", lambda cell: Fraction(cell.global_batch))):
        groups: dict[Fraction, list[Cell]] = {}
        for cell in cells:  # these are in order of ranks
            groups.setdefault(key(cell), []).append(cell)
        found += [Series(kind, tuple(group)) for _, group in sorted(groups.items()) if len(group) > 1]
    return tuple(found)


def cell_table(cells: Iterable[Cell]) -> pd.DataFrame:
    """One row per cell: what it is, its throughput with interval, its step time. Times in milliseconds."""
    rows = []
    for cell in cells:
        low, high = bootstrap.interval(cell.draws)
        steps_ms = np.concatenate([repeat.step_s for repeat in cell.repeats]) * 1e3
        hosts = {len(set(repeat.launch.facts["hosts"])) for repeat in cell.repeats}
        rows.append(
            {
                "ranks": cell.ranks,
                "hosts": max(hosts),
                "global_batch": cell.global_batch,
                "repeats": len(cell.repeats),
                "steps": cell.steps,
                "block_steps": max(bootstrap.block_length(repeat.step_s) for repeat in cell.repeats),
                "tokens_per_s": cell.throughput,
                "tokens_per_s_low": low,
                "tokens_per_s_high": high,
                "step_ms_mean": float(np.mean([repeat.step_s.mean() for repeat in cell.repeats])) * 1e3,
                "step_ms_median": float(np.median(steps_ms)),
                "step_ms_p95": float(np.quantile(steps_ms, 0.95)),
            }
        )
    return pd.DataFrame(rows)


def efficiency_table(series: Iterable[Series]) -> pd.DataFrame:
    """One row per series and number of ranks. Efficiency = throughput per rank over the baseline's.

    The baseline's own efficiency is 1 by definition and has no interval (NaN).
    """
    rows = []
    for one in series:
        base, base_draws = one.baseline, one.baseline.draws
        for cell in one.cells:
            ratio = base.ranks / cell.ranks
            efficiency = cell.throughput / base.throughput * ratio
            low = high = np.nan
            if cell is not base:
                low, high = bootstrap.interval(cell.draws / base_draws * ratio)
            rows.append(
                {
                    "scaling": one.kind,
                    "series": one.title,
                    "baseline_ranks": base.ranks,
                    "ranks": cell.ranks,
                    "repeats": len(cell.repeats),
                    "steps": cell.steps,
                    "tokens_per_s": cell.throughput,
                    "speedup": cell.throughput / base.throughput,
                    "efficiency": efficiency,
                    "efficiency_low": low,
                    "efficiency_high": high,
                    "above_100": bool(efficiency > 1),
                }
            )
    return pd.DataFrame(rows, columns=_EFFICIENCY_COLUMNS)


_EFFICIENCY_COLUMNS = [
    *("scaling", "series", "baseline_ranks", "ranks", "repeats", "steps", "tokens_per_s", "speedup"),
    *("efficiency", "efficiency_low", "efficiency_high", "above_100"),
]
