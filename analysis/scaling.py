"""Cells (runs of one N, batch and variant), strong and weak series of cells, and their efficiency."""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd

from analysis import bootstrap
from analysis.errors import AnalysisError
from analysis.laws import serial_fraction
from analysis.match import accept, variant
from analysis.measure import Measurement

Variant = tuple[tuple[str, str], ...]
_EXCHANGE = ("reduce.", "sync.")  # sections of the configuration that are about it


@dataclass(frozen=True)
class Cell:
    """Repeats: measurements of the same number of ranks, the same global batch, and one variant.

    Attributes:
        variant: what runs are told apart by, key and value, if they are.
    """

    ranks: int
    global_batch: int
    repeats: tuple[Measurement, ...]
    variant: Variant = ()

    @property
    def label(self) -> str:
        """The variant in words."""
        return named(self.variant)

    @property
    def plain(self) -> bool:
        """Whether it is one rank that trains as if there were no others."""
        run = self.repeats[0].launch.run
        return self.ranks == 1 and not run.apart and run.compressor == "none"

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
        which = [zlib.crc32(self.label.encode())] if self.variant else []
        return bootstrap.throughput_draws(values, (self.ranks, self.global_batch, *which))

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
    """Cells of one variant with the same global batch (strong) or batch per rank (weak), by number of ranks.

    The first, the baseline, may be a plain rank of another variant that differs in how gradients are exchanged.
    """

    kind: str  # "strong" or "weak"
    cells: tuple[Cell, ...]

    @property
    def baseline(self) -> Cell:
        return self.cells[0]

    @property
    def title(self) -> str:
        first = f"{label}: " if (label := self.cells[-1].label) else ""
        if self.kind == "strong":
            return f"{first}strong scaling, {self.baseline.global_batch} sequences per step"
        return f"{first}weak scaling, {shown(self.baseline.batch_per_rank)} sequences per rank"


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


def named(variant: Variant) -> str:
    """In words, such as "compressor int8, bucket_mb 4.0"."""
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in variant)


def experiment(
    measurements: list[Measurement],
    allow: Iterable[str] = (),
    left_out: Iterable[str] = (),
    warmup: int | None = None,
    by: Iterable[str] = (),
) -> Experiment:
    """Sort measurements into cells and series.

    Args:
        by: keys of facts; runs that differ in one are variants, not repeats.

    Raises:
        AnalysisError: two of them differ in what must match, or a batch fits no other's.
    """
    allow, by = set(allow), tuple(dict.fromkeys(by))
    accepted = accept([one.launch for one in measurements], allow, by)
    by_cell: dict[tuple[int, int, Variant], list[Measurement]] = {}
    for one in measurements:
        place = one.launch.size, one.launch.run.global_batch, variant(one.launch, by)
        by_cell.setdefault(place, []).append(one)
    cells = tuple(
        # The order of repeats must not depend on the order of arguments: same input, same bytes.
        Cell(ranks, batch, tuple(sorted(repeats, key=lambda one: (one.name, sorted(one.sha256.items())))), which)
        for (ranks, batch, which), repeats in sorted(by_cell.items())
    )
    series = _series(cells)
    lonely = [cell for cell in cells if not any(cell in one.cells for one in series) and not _beside(cell, cells)]
    if len(cells) > 1 and lonely and "train.global_batch" not in allow:
        raise AnalysisError(f"these runs cannot be measured against each other: {_why_lonely(lonely[0], cells)}")
    return Experiment(cells, series, accepted, tuple(left_out), warmup)


def _why_lonely(lonely: Cell, cells: tuple[Cell, ...]) -> str:
    if lonely.variant:
        return (
            f"{lonely.label} was measured on {lonely.ranks} ranks with train.global_batch {lonely.global_batch} alone, "
            "and no other variant was there"
        )
    return (
        "train.global_batch is "
        + " but ".join(f"{cell.global_batch} on {cell.ranks} ranks" for cell in cells[:6])
        + f", and {lonely.global_batch} on {lonely.ranks} is neither another's batch nor another's batch per rank "
        "(accept with --allow train.global_batch)"
    )


def _beside(cell: Cell, cells: tuple[Cell, ...]) -> bool:
    """Whether another variant was measured at the same number of ranks and batch."""
    return any(
        (one.ranks, one.global_batch) == (cell.ranks, cell.global_batch) and one.variant != cell.variant
        for one in cells
    )


def _series(cells: tuple[Cell, ...]) -> tuple[Series, ...]:
    found = []
    for kind, key in (("weak", lambda cell: cell.batch_per_rank), ("strong", lambda cell: Fraction(cell.global_batch))):
        groups: dict[tuple[Fraction, Variant], list[Cell]] = {}
        for cell in cells:  # these are in order of ranks
            groups.setdefault((key(cell), cell.variant), []).append(cell)
        for (batch, which), group in groups.items():
            alone = [cell for cell in cells if cell.plain and key(cell) == batch and _differ_in_exchange(cell, which)]
            if group[0].ranks > 1 and alone:
                group.insert(0, alone[0])
        found += [Series(kind, tuple(group)) for _, group in sorted(groups.items()) if len(group) > 1]
    return tuple(found)


def _differ_in_exchange(cell: Cell, other: Variant) -> bool:
    """Whether a variant differs from a cell's in nothing but what one rank alone does not do, or has not."""
    theirs = dict(other)
    return all(theirs.get(key) == value or key.startswith(_EXCHANGE) for key, value in cell.variant)


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
                "variant": cell.label,
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

    The baseline's own efficiency is 1 by definition and has no interval (NaN), nor a serial fraction.
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
                    "variant": one.cells[-1].label,
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
    table = pd.DataFrame(rows, columns=_EFFICIENCY_COLUMNS)
    times = table["ranks"] / table["baseline_ranks"]
    for name, value in (("", "efficiency"), ("_low", "efficiency_high"), ("_high", "efficiency_low")):
        table[f"serial_fraction{name}"] = serial_fraction(times, table[value] * times)
    return table


_EFFICIENCY_COLUMNS = [
    *("scaling", "variant", "series", "baseline_ranks", "ranks", "repeats", "steps", "tokens_per_s", "speedup"),
    *("efficiency", "efficiency_low", "efficiency_high", "above_100"),
]
