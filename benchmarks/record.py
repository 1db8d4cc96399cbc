"""What a benchmark leaves behind: a folder with bench.json, every time measured, the ratios and their figure."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import torch

from hvd_llm import provenance


def default_folder() -> Path:
    return Path("runs") / f"bench-{time.strftime('%Y%m%d-%H%M%S')}"


def ratios(times: pd.DataFrame) -> pd.DataFrame:
    """Our step time over each contender's, taken within a round.

    Args:
        times: columns controller, contender, round, seconds (a step of the slowest rank); "ours" is a contender.

    Returns:
        A row per controller and contender: ms (median of its own steps), and the ratio's median and quartiles.
    """
    wide = times.pivot(index=["controller", "round"], columns="contender", values="seconds")
    rows = []
    for controller, rounds in wide.groupby("controller", sort=False):
        for contender in times["contender"].unique():
            ratio = (rounds["ours"] / rounds[contender]).dropna()
            if len(ratio):
                low, middle, high = ratio.quantile([0.25, 0.5, 0.75])
                seconds = rounds[contender].median()
                rows.append((controller, contender, len(ratio), 1e3 * seconds, middle, low, high))
    return pd.DataFrame(
        rows, columns=["controller", "contender", "rounds", "ms", "ratio", "lower_quartile", "upper_quartile"]
    )


def write(folder: Path, times: pd.DataFrame, settings: dict[str, Any], ranks: int) -> None:
    """Write bench.json, times.csv, ratios.csv and ratios.png."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "schema": "hvd_llm.bench/1",
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "ranks": ranks,
        "settings": settings,
        "versions": provenance.versions(),
        "git": provenance.git(),
        "machine": provenance.machine(torch.device("cpu")),
    }
    (folder / "bench.json").write_text(json.dumps(about, indent=1) + "\n")
    times.to_csv(folder / "times.csv", index=False)
    table = ratios(times)
    table.to_csv(folder / "ratios.csv", index=False)
    others = table[table["contender"] != "ours"]
    if len(others):
        _figure(others, folder / "ratios.png")


def _figure(table: pd.DataFrame, path: Path) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    controllers = list(table["controller"].unique())
    figure, axes = plt.subplots(
        1, len(controllers), figsize=(4.5 * len(controllers), 3), sharex=True, sharey=True, squeeze=False
    )
    for ax, controller in zip(axes[0], controllers, strict=True):
        rows = table[table["controller"] == controller].iloc[::-1]
        spread = [rows["ratio"] - rows["lower_quartile"], rows["upper_quartile"] - rows["ratio"]]
        ax.errorbar(rows["ratio"], rows["contender"], xerr=spread, fmt="o", capsize=3)
        ax.axvline(1, color="grey", linewidth=1)
        ax.set_title(f"hvd_llm on {controller}")
        ax.set_xlabel("our step time / its step time")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
