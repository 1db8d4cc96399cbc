"""Variants side by side: runs that differ in what was named with --by, at equal ranks and batch."""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd

from analysis import bootstrap
from analysis.breakdown import communication_table
from analysis.scaling import Cell

COLUMNS = [
    *("ranks", "global_batch", "variant", "repeats", "tokens_per_s", "ms", "ms_low", "ms_high"),
    *("over", "ratio", "ratio_low", "ratio_high", "exposed_ms", "wire_mb", "validation_loss"),
]


def variant_table(cells: Iterable[Cell], losses: pd.DataFrame) -> pd.DataFrame:
    """A row per cell that has others beside it: the mean step in ms, and its time over that of the variant in `over`.

    That is the uncompressed one; without it, or where several are, the first. Times are those of equally many tokens:
    the mean step's tokens over the throughput.

    Args:
        losses: columns run, step, validation_loss; the last one of each run is taken, the mean over repeats.
    """
    cells = list(cells)
    runs = Counter(name for cell in cells for name in {one.launch.run.name for one in cell.repeats})
    if not losses.empty:  # a run that was resumed as another variant ended as neither
        losses = losses[~losses["run"].isin([name for name, count in runs.items() if count > 1])]
    groups: dict[tuple[int, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.ranks, cell.global_batch), []).append(cell)
    rows = []
    for group in groups.values():
        if len(group) == 1:
            continue
        base = next((cell for cell in group if cell.repeats[0].launch.run.compressor == "none"), group[0])
        rows += [_row(cell, base, losses) for cell in group]
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(cell: Cell, base: Cell, losses: pd.DataFrame) -> dict:
    tokens = cell.tokens_per_rank * cell.ranks
    ms_draws, base_draws = (tokens * 1e3 / one.draws for one in (cell, base))
    low, high = bootstrap.interval(ms_draws)
    ratio = (np.nan, np.nan) if cell is base else bootstrap.interval(ms_draws / base_draws)
    sent = communication_table([cell])
    return {
        "ranks": cell.ranks,
        "global_batch": cell.global_batch,
        "variant": cell.label,
        "repeats": len(cell.repeats),
        "tokens_per_s": cell.throughput,
        "ms": tokens * 1e3 / cell.throughput,
        "ms_low": low,
        "ms_high": high,
        "over": base.label,
        "ratio": base.throughput / cell.throughput,
        "ratio_low": ratio[0],
        "ratio_high": ratio[1],
        "exposed_ms": sent["exposed_ms"].iloc[0] if len(sent) else 0.0,
        "wire_mb": sent["wire_mb"].iloc[0] if len(sent) else 0.0,
        "validation_loss": _last_loss(cell, losses),
    }


def _last_loss(cell: Cell, losses: pd.DataFrame) -> float:
    """The mean of its runs' last validation losses; NaN where there is none."""
    if losses.empty:
        return np.nan
    scored = losses[losses["run"].isin({one.launch.run.name for one in cell.repeats})].dropna(subset="validation_loss")
    return float(scored.groupby("run")["validation_loss"].last().mean())
