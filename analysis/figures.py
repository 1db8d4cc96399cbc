"""The figures, each a function of a table; drawn in a light and a dark style, with the same bytes every time."""

import io
import warnings
from collections.abc import Callable

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator, PercentFormatter

from analysis.laws import AHEAD, curves

# Okabe and Ito's colours: told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, YELLOW, SKY, PURPLE = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7"
PART_COLOURS = {
    "input": YELLOW,
    "forward": SKY,
    "backward": BLUE,
    "exposed": ORANGE,
    "optimizer": GREEN,
    "residual": "#999999",
}
_ON = {"backward": "#ffffff", "optimizer": "#ffffff"}  # text on a part's colour
SERIES_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY)

FORMS = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}  # without what changes
_LINE = 96  # letters of a legend that fit beside each other
_MOST_NAMED = 8  # lines that a legend names
_MOST_CELLS = 400  # of a heat map, in each direction

_THEMES = {
    "light": {"paper": "#ffffff", "ink": "#1f2328", "faint": "#d8dee4"},
    "dark": {"paper": "#161b22", "ink": "#e6edf3", "faint": "#3d444d"},
}


def draw(plot: Callable[[Axes], None], theme: str, height: float = 3.4, form: str = "png") -> bytes:
    """One axes that `plot` fills, as one of `FORMS`; `height` in inches, the width is 7."""
    colours = _THEMES[theme]
    style = {
        "figure.facecolor": colours["paper"],
        "axes.facecolor": colours["paper"],
        "axes.edgecolor": colours["faint"],
        "grid.color": colours["faint"],
        "text.color": colours["ink"],
        "axes.labelcolor": colours["ink"],
        "xtick.color": colours["ink"],
        "ytick.color": colours["ink"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.linewidth": 0.7,
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "text.parse_math": False,  # names of runs are text, not formulas
        "svg.hashsalt": "",  # the same names of its parts every time
    }
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **style}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a run's name may hold any character
        figure = Figure(figsize=(7, height), layout="constrained")
        plot(figure.add_subplot())
        file = io.BytesIO()
        figure.savefig(file, format=form, dpi=150, metadata=FORMS[form])
    return file.getvalue()


def efficiency(table: pd.DataFrame) -> Callable[[Axes], None]:
    """Efficiency over ranks with 95 % intervals; one line per series of `efficiency_table`."""

    def plot(axes: Axes) -> None:
        axes.axhline(1, color=axes.xaxis.label.get_color(), linewidth=1, linestyle=(0, (4, 3)))
        groups = list(table.groupby("series", sort=False))
        for number, (title, rows) in enumerate(groups):
            colour = SERIES_COLOURS[number % len(SERIES_COLOURS)]
            nudge = 1 + 0.02 * (number - (len(groups) - 1) / 2)  # intervals of two series must not hide each other
            error = np.abs(rows[["efficiency_low", "efficiency_high"]].sub(rows["efficiency"], axis=0)).fillna(0)
            ranks = rows["ranks"] * nudge
            axes.errorbar(ranks, rows["efficiency"], error.T, fmt="o-", ms=4, color=colour, capsize=4, label=title)
        for _, row in groups[0][1].iloc[1:].iterrows():
            axes.annotate(
                f"{row['efficiency'] * 100:.1f} %",
                (row["ranks"], row["efficiency"]),
                xytext=(7, -16),
                textcoords="offset points",
                fontsize=9,
            )
        _rank_axis(axes, table["ranks"])
        top = max(1.08, float(table[["efficiency", "efficiency_high"]].max().max()) + 0.05)
        axes.set_ylim(0, top)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        base = int(table["baseline_ranks"].min())
        axes.set_ylabel(f"efficiency ({base} rank{'s' * (base > 1)} = 100 %)")
        axes.legend(loc="lower left")

    return plot


def laws(efficiencies: pd.DataFrame, table: pd.DataFrame) -> Callable[[Axes], None]:
    """Measured efficiency of each series of `law_table` (points), and the believed law's (lines)."""

    def plot(axes: Axes) -> None:
        axes.axhline(1, color=axes.xaxis.label.get_color(), linewidth=1, linestyle=(0, (4, 3)))
        most = (efficiencies["ranks"] / efficiencies["baseline_ranks"]).max() * AHEAD[-1]
        times = np.geomspace(1, most, 200)
        for number, (title, values) in enumerate(curves(table, times)):
            colour = SERIES_COLOURS[number % len(SERIES_COLOURS)]
            rows = efficiencies[efficiencies["series"] == title]
            law = table.loc[table["believed"] & (table["series"] == title), "law"].iloc[0]
            axes.plot(times * rows["baseline_ranks"].iloc[0], values, color=colour, label=f"{title}: {law}")
            axes.plot(rows["ranks"], rows["efficiency"], "o", ms=4, color=colour)
        ranks = sorted(set(efficiencies["ranks"]))
        _rank_axis(axes, pd.Series([*ranks, *(ranks[-1] * factor for factor in AHEAD)]))
        axes.set_ylim(0, max(1.08, float(efficiencies["efficiency"].max()) + 0.05))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylabel("efficiency")
        axes.legend(loc="lower left")

    return plot


def throughput(cells: pd.DataFrame, series: pd.DataFrame) -> Callable[[Axes], None]:
    """Tokens per second over ranks, and the ideal line from each series' baseline."""

    def plot(axes: Axes) -> None:
        low_high = cells[["tokens_per_s_low", "tokens_per_s_high"]].sub(cells["tokens_per_s"], axis=0).abs()
        for number, (title, rows) in enumerate(series.groupby("series", sort=False)):
            colour = SERIES_COLOURS[number % len(SERIES_COLOURS)]
            per_rank = rows["tokens_per_s"].iloc[0] / rows["ranks"].iloc[0]
            ideal = "ideal" if number == 0 else None
            axes.plot(
                rows["ranks"], rows["ranks"] * per_rank, "--", color=axes.xaxis.label.get_color(), lw=1, label=ideal
            )
            axes.plot(rows["ranks"], rows["tokens_per_s"], "-", color=colour, label=title)
        ink = axes.xaxis.label.get_color()
        axes.errorbar(cells["ranks"], cells["tokens_per_s"], low_high.T, fmt="o", ms=4, color=ink, capsize=4)
        values = sorted(set(cells["ranks"]))
        apart = [at for at, value in enumerate(values) if at == 0 or value - values[at - 1] > 0.03 * values[-1]]
        axes.xaxis.set_major_locator(FixedLocator([values[at] for at in apart]))
        axes.set_xlim(0, values[-1] * 1.06)
        axes.set_xlabel("ranks")
        axes.set_ylim(0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_ylabel("tokens per second")
        if len(series):
            axes.legend(loc="upper left")

    return plot


def _rank_axis(axes: Axes, ranks: pd.Series) -> None:
    """Numbers of ranks on a logarithmic axis, each labelled where there is room."""
    values = sorted(set(ranks))
    if len(values) > 1:
        axes.set_xscale("log", base=2)
    shown = values if len(values) <= 10 else values[:: -(-len(values) // 10)]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.set_xlim(values[0] / 1.25, values[-1] * 1.25)
    axes.set_xlabel("ranks")


def breakdown(table: pd.DataFrame) -> Callable[[Axes], None]:
    """One bar per cell, of parts that sum to its step time."""

    def plot(axes: Axes) -> None:
        labels = _cell_names(table)
        left = np.zeros(len(table))
        for name, colour in PART_COLOURS.items():
            width = table[f"{name}_ms"].to_numpy()
            axes.barh(labels, width, left=left, color=colour, label=name, height=0.62)
            for at, (value, start) in enumerate(zip(width, left, strict=True)):
                if value > 0.06 * table["step_ms"].max():
                    ink = _ON.get(name, "#111111")
                    axes.text(start + value / 2, at, f"{value:.3g}", ha="center", va="center", fontsize=8.5, color=ink)
            left += width
        for at, total in enumerate(table["step_ms"]):
            axes.text(total, at, f" {total:.4g} ms", va="center", fontsize=9)
        axes.set_xlim(0, table["step_ms"].max() * 1.16)
        axes.set_xlabel("milliseconds of a step (slowest rank, mean over steps)")
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.legend(ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.0), handlelength=1, columnspacing=1.2)

    return plot


def communication(table: pd.DataFrame) -> Callable[[Axes], None]:
    """Hidden and exposed communication, one bar per cell with several ranks."""

    def plot(axes: Axes) -> None:
        labels = _cell_names(table)
        axes.barh(labels, table["hidden_ms"], color=BLUE, label="hidden: the rank computed", height=0.55)
        axes.barh(labels, table["exposed_ms"], left=table["hidden_ms"], color=ORANGE, label="exposed", height=0.55)
        axes.set_xlabel("milliseconds of a step (mean over steps and ranks)")
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    return plot


def _cell_names(table: pd.DataFrame) -> list[str]:
    """What tells cells apart, on two lines."""
    return [
        f"{row.ranks} rank{'s' * (row.ranks > 1)}, batch {row.global_batch}\n{row.variant}"
        if row.variant
        else f"{row.ranks} rank{'s' * (row.ranks > 1)}\nbatch {row.global_batch}"
        for row in table[["ranks", "global_batch", "variant"]].itertuples()
    ]


def step_times(table: pd.DataFrame) -> Callable[[Axes], None]:
    """Measured steps one by one, a line per launch, a colour per cell: noise, drift, what the warm-up rule left in."""

    def plot(axes: Axes) -> None:
        for number, (_, cell) in enumerate(table.groupby(["ranks", "global_batch", "variant"])):
            label = _cell_names(cell.head(1))[0].replace("\n", ", ") if number < _MOST_NAMED else None
            for _, rows in cell.groupby("launch", sort=False):
                _line(axes, rows, "step_ms", number, label)
                label = None
        _legend_above(axes)
        axes.set_ylim(0, table["step_ms"].quantile(0.995) * 1.25)
        axes.set_xlabel("step")
        axes.set_ylabel("step time in milliseconds")

    return plot


def own_work(over_median: np.ndarray, steps: np.ndarray, hosts: list[str], launch: str) -> Callable[[Axes], None]:
    """A heat map of (R, S) own work over the median rank's: ranks from the top, steps from the left.

    Where there are more than pixels can tell, each shows the largest of several.
    """

    def plot(axes: Axes) -> None:
        shown = _largest_of(_largest_of(over_median, _MOST_CELLS, 1), _MOST_CELLS, 0) - 1
        most = max(0.05, float(np.quantile(shown, 0.99)))  # one odd step must not pale all others
        extent = (steps[0] - 0.5, steps[-1] + 0.5, len(hosts) - 0.5, -0.5)
        look = {"aspect": "auto", "interpolation": "nearest", "cmap": "cividis", "vmin": 0, "vmax": most}
        image = axes.imshow(shown, extent=extent, **look)
        bar = axes.figure.colorbar(image, ax=axes, format=PercentFormatter(1), pad=0.02)
        bar.set_label("above the median rank")
        places = np.unique(np.linspace(0, len(hosts) - 1, min(len(hosts), 16)).round().astype(int))
        axes.set_yticks(places, [f"{place}  {hosts[place]:.16}" for place in places], fontsize=8)
        axes.set_ylabel("rank and host")
        axes.set_xlabel("step")
        axes.set_title(launch, fontsize=9)
        axes.grid(visible=False)

    return plot


def _largest_of(values: np.ndarray, most: int, axis: int) -> np.ndarray:
    """At most so many along an axis, each the largest of neighbours."""
    starts = np.unique(np.linspace(0, values.shape[axis], min(most, values.shape[axis]), endpoint=False).astype(int))
    return np.maximum.reduceat(values, starts, axis=axis)


def losses(table: pd.DataFrame) -> Callable[[Axes], None]:
    """Training loss (lines) and validation loss (dashed, marked) over steps, a colour per run."""

    def plot(axes: Axes) -> None:
        for number, (name, rows) in enumerate(table.groupby("run", sort=False)):
            _line(axes, rows.dropna(subset="loss"), "loss", number, name if number < _MOST_NAMED else None)
            _line(axes, rows.dropna(subset="validation_loss"), "validation_loss", number, None, "o--")
        if table["validation_loss"].notna().any():
            axes.plot([], [], "o--", color=axes.xaxis.label.get_color(), ms=4, lw=1.1, label="validation")
        _legend_above(axes)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")

    return plot


def _line(axes: Axes, rows: pd.DataFrame, y: str, number: int, label: str | None, style: str = "-") -> None:
    """One column over steps, thinned to what a figure can show."""
    rows = rows.iloc[:: max(1, len(rows) // 2000)]
    axes.plot(
        rows["step"], rows[y], style, color=SERIES_COLOURS[number % len(SERIES_COLOURS)], lw=1.1, ms=4, label=label
    )


def _legend_above(axes: Axes) -> None:
    """In as many columns as there is room for."""
    longest = max([len(label) for label in axes.get_legend_handles_labels()[1]], default=0)
    columns = max(1, min(4, _LINE // (longest + 6)))
    axes.legend(ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8.5, handlelength=1.4)


def errors(table: pd.DataFrame) -> Callable[[Axes], None]:
    """Signed errors of predictions, a line each, beside those of the trivial baseline."""

    def plot(axes: Axes) -> None:
        places = range(len(table))[::-1]
        axes.axvline(0, color=axes.xaxis.label.get_color(), linewidth=1)
        axes.plot(table["trivial_error"] * 100, places, "o", ms=4, color=SKY, label="trivial baseline")
        axes.plot(table["error"] * 100, places, "o", ms=5, color=BLUE, label="predicted")
        names = table["table"].str.slice(0, 44) + ", " + table["devices"].astype(str)
        axes.set_yticks(places, names, fontsize=7)
        axes.set_xlabel("predicted over measured step time, less 1, in %")
        axes.grid(axis="y", visible=False)
        axes.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    return plot


def simulated(table: pd.DataFrame) -> Callable[[Axes], None]:
    """Predicted efficiency over ranks, a line per network, compressor and size of buckets."""

    def plot(axes: Axes) -> None:
        several = [name for name in ("network", "compressor", "bucket_mb") if table[name].nunique() > 1]
        for number, (_, rows) in enumerate(table.groupby(["network", "compressor", "bucket_mb"], sort=False)):
            first = rows.iloc[0]
            words = [f"{first[name]:g} MiB" if name == "bucket_mb" else str(first[name]) for name in several]
            style = ("-", "--", ":", "-.")[number // len(SERIES_COLOURS) % 4]
            colour = SERIES_COLOURS[number % len(SERIES_COLOURS)]
            axes.plot(rows["ranks"], rows["efficiency"], f"o{style}", ms=3, color=colour, label=", ".join(words))
        _rank_axis(axes, table["ranks"])
        axes.set_ylim(0, 1.05)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_ylabel("predicted efficiency (1 rank = 100 %)")
        _legend_above(axes)

    return plot


def side_by_side(labels: pd.Series, values: pd.Series, spread: pd.DataFrame, axis: str) -> Callable[[Axes], None]:
    """A point for each label, from the top; `spread` has the ends of its bar, or no columns."""

    def plot(axes: Axes) -> None:
        places = range(len(labels))[::-1]
        error = np.abs(spread.sub(values, axis=0)).fillna(0).to_numpy().T if len(spread.columns) else None
        axes.errorbar(values, places, xerr=error, fmt="o", ms=4, capsize=3, color=BLUE)
        axes.set_yticks(places, labels, fontsize=8)
        axes.set_xlabel(axis)
        axes.grid(axis="y", visible=False)
        if values.min() > 0 and values.max() > 4 * values.min():
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_locator(NullLocator())

    return plot
