"""Where a step's time goes: parts that sum to it, communication, ranks, and what is lost against the ideal."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from analysis.measure import ALL_PARTS, Measurement
from analysis.run_folder import SHARED_MEMORY
from analysis.scaling import Cell, Series

_TINY = 1e-12  # stands for a time of zero in a denominator


def parts_ms(cell: Cell) -> dict[str, float]:
    """Mean milliseconds of each part of the slowest rank's step, `residual` included; they sum to the mean step."""
    return {name: float(np.mean([one.parts_s[name].mean() for one in cell.repeats])) * 1e3 for name in ALL_PARTS}


def breakdown_table(cells: Iterable[Cell]) -> pd.DataFrame:
    """One row per cell: milliseconds by part, their sum (the mean step), and what lay between steps."""
    rows = []
    for cell in cells:
        parts = parts_ms(cell)
        row = {"ranks": cell.ranks, "global_batch": cell.global_batch, "variant": cell.label}
        row |= {f"{name}_ms": value for name, value in parts.items()} | {"step_ms": sum(parts.values())}
        for name in ("checkpoint", "evaluate"):
            times = sum(one.between[name][0] for one in cell.repeats)
            row[f"{name}_times"] = times
            row[f"{name}_ms_each"] = sum(one.between[name][1] for one in cell.repeats) * 1e3 / times if times else 0.0
        rows.append(row)
    return pd.DataFrame(rows)


def loss_ms(series: Series, cell: Cell) -> dict[str, float]:
    """Milliseconds by which each part exceeds the baseline's for the same tokens per rank; they sum to the loss.

    A negative value is time won: that part takes less than ideal scaling promises.
    """
    scale = cell.tokens_per_rank / series.baseline.tokens_per_rank
    ideal = parts_ms(series.baseline)
    return {name: value - ideal[name] * scale for name, value in parts_ms(cell).items()}


def communication_table(cells: Iterable[Cell]) -> pd.DataFrame:
    """One row per cell with several ranks; means over steps and ranks.

    Wire bytes are what a rank sends. Bus bandwidth is wire bytes over the time in which any exchange was under way,
    waiting included. Both are NaN where ranks share memory, and where the trace says nothing of them.
    """
    rows = []
    for cell in cells:
        if cell.ranks == 1:
            continue
        mean = {
            name: float(np.mean([getattr(one, name).mean() for one in cell.repeats]))
            for name in ("hidden_s", "exchange_s", "payload_bytes", "sent_bytes", "exchanges")
        }
        exposed_s = float(np.mean([one.ranks["exposed_s"].mean() for one in cell.repeats]))
        through = sorted({one.launch.through for one in cell.repeats})
        wire = np.nan if SHARED_MEMORY in through else mean["sent_bytes"]
        exchange_s, both = mean["exchange_s"], exposed_s + mean["hidden_s"]
        rows.append(
            {
                "ranks": cell.ranks,
                "global_batch": cell.global_batch,
                "variant": cell.label,
                "through": ", ".join(through),
                "exchanges": mean["exchanges"],
                "exposed_ms": exposed_s * 1e3,
                "hidden_ms": mean["hidden_s"] * 1e3,
                "hidden_share": mean["hidden_s"] / both if both else 0.0,
                "payload_mb": mean["payload_bytes"] / 1e6,
                "wire_mb": wire / 1e6,
                "bus_mb_per_s": wire / exchange_s / 1e6 if exchange_s else 0.0,
            }
        )
    return pd.DataFrame(rows)


def rank_table(cells: Iterable[Cell]) -> pd.DataFrame:
    """One row per launch and rank: host, mean milliseconds by part, own work over the median rank's, share of steps in
    which it was the slowest.

    Own work is what a rank does itself: everything traced in a step but the wait for gradients.
    """
    tables = []
    for cell in cells:
        for one in cell.repeats:
            table = one.ranks.copy()
            seconds = [name for name in table if name.endswith("_s")]
            table = table.rename(columns={name: f"{name[:-2]}_ms" for name in seconds})
            table[[f"{name[:-2]}_ms" for name in seconds]] *= 1e3
            table["own_over_median"] = table["own_ms"] / max(table["own_ms"].median(), _TINY)
            slowest = np.bincount(one.own_s.argmax(axis=0), minlength=len(table))
            table["slowest_share"] = slowest / one.own_s.shape[1]
            table.insert(0, "launch", one.name)
            table.insert(1, "ranks", cell.ranks)
            table.insert(2, "global_batch", cell.global_batch)
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def slowest_rank(cell: Cell) -> tuple[int, str, float]:
    """Rank, host and own work over the median rank's, where this is largest; mean over repeats."""
    own = np.stack([one.ranks["own_s"].to_numpy() for one in cell.repeats])  # (repeats, R)
    ratio = (own / np.maximum(np.median(own, axis=1, keepdims=True), _TINY)).mean(axis=0)
    rank = int(ratio.argmax())
    return rank, cell.repeats[0].ranks["host"][rank], float(ratio[rank])


def own_over_median(one: Measurement) -> np.ndarray:
    """Each rank's own work in each step, over that of the step's median rank. (R, S)"""
    return one.own_s / np.maximum(np.median(one.own_s, axis=0), _TINY)
