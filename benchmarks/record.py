"""What a benchmark leaves behind: a folder with bench.json, every time measured, ratios, a figure."""

import itertools
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import torch

from hvd_llm import provenance

_QUARTILES = [0.25, 0.5, 0.75]


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
                low, middle, high = ratio.quantile(_QUARTILES)
                seconds = rounds[contender].median()
                rows.append((controller, contender, len(ratio), 1e3 * seconds, middle, low, high))
    return pd.DataFrame(
        rows, columns=["controller", "contender", "rounds", "ms", "ratio", "lower_quartile", "upper_quartile"]
    )


def ratios_to_peer(times: pd.DataFrame, completed: dict[str, list[str]]) -> pd.DataFrame:
    """Each contender's step time over that of the fastest DDP (without one, of the first contender) in a round.

    Args:
        times: columns controller, rate, contender, round, seconds (a step of the slowest rank), sent_bytes,
            priced_bytes.
        completed: controller → the contenders to compare, in the order in which to list them.

    Returns:
        A row per controller, rate and contender: median and quartiles of a step in ms, median of its sent_bytes and
        priced_bytes, `over` (what it is compared with), and median and quartiles of the ratio.
    """
    rows = []
    for (controller, rate), group in times.groupby(["controller", "rate"], sort=False):
        wide = group.pivot(index="round", columns="contender", values=["seconds", "sent_bytes", "priced_bytes"])
        seconds, bytes_sent = wide["seconds"], wide[["sent_bytes", "priced_bytes"]].median()
        names = [name for name in completed[controller] if name in seconds]
        peers = [name for name in names if name.startswith("ddp")] or names[:1]
        over = min(peers, key=seconds.median().get, default="")
        for name in names:
            ms = 1e3 * seconds[name].quantile(_QUARTILES)
            ratio = (seconds[name] / seconds[over]).quantile(_QUARTILES)
            rows.append((controller, rate, name, seconds[name].count(), *ms, *bytes_sent[:, name], over, *ratio))
    columns = (
        "controller rate contender rounds lower_ms ms upper_ms sent_bytes priced_bytes over lower_quartile ratio "
        "upper_quartile"
    )
    return pd.DataFrame(rows, columns=columns.split())


def write(folder: Path, times: pd.DataFrame, ratios: pd.DataFrame, about: dict[str, Any]) -> None:
    """Write times.csv, ratios.csv and bench.json."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "schema": "hvd_llm.bench/2",
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        **about,
        "versions": provenance.versions(),
        "git": provenance.git(),
        "machine": provenance.machine(torch.device("cpu")),
    }
    times.to_csv(folder / "times.csv", index=False)
    ratios.to_csv(folder / "ratios.csv", index=False)
    (folder / "bench.json").write_text(json.dumps(about, indent=1) + "\n")  # last: it makes the folder a benchmark's


def ratio_figure(table: pd.DataFrame, path: Path) -> None:
    """Draw our step time over each other contender's, a panel per controller."""
    table = table[table["contender"] != "ours"]
    if table.empty:
        return
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


def time_figure(table: pd.DataFrame, path: Path) -> None:
    """Draw what `ratios_to_peer` returns: step times on a logarithmic axis, a row per controller, a panel per rate."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    controllers, rates = table["controller"].unique(), table["rate"].unique()
    names = list(table["contender"].unique())[::-1]
    labels = [name.replace(",", ",\n") for name in names]
    lines = max(label.count("\n") for label in labels) + 1
    size = (1.5 + 3.5 * len(rates), len(controllers) * (1 + 0.2 * len(names) * (lines + 0.25)))
    shape = {"sharex": True, "sharey": True, "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(len(controllers), len(rates), figsize=size, **shape)
    for (i, controller), (j, rate) in itertools.product(enumerate(controllers), enumerate(rates)):
        ax, panel = axes[i][j], table[(table["controller"] == controller) & (table["rate"] == rate)]
        kinds = panel["contender"].str.extract("^(ours|ddp)", expand=False)
        for kind, color in (("ours", "tab:red"), ("ddp", "tab:blue"), (None, "tab:gray")):
            rows = panel[kinds == kind if kind else kinds.isna()]
            spread = [rows["ms"] - rows["lower_ms"], rows["upper_ms"] - rows["ms"]]
            places = [names.index(name) for name in rows["contender"]]
            ax.errorbar(rows["ms"], places, xerr=spread, fmt="o", capsize=3, color=color)
        ax.set(xscale="log", title=f"{rate}, {controller}", xlabel="ms per step", yticks=range(len(names)))
        ax.set_yticklabels(labels, fontsize=8)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
