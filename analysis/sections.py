"""The sections of the report: each a function of the experiment; another one is added to SECTIONS."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes

from analysis import figures, tables
from analysis.breakdown import breakdown_table, communication_table, own_over_median, rank_table
from analysis.clocks import clock_table
from analysis.expectation import expectation_table
from analysis.horovod_timeline import Timeline
from analysis.laws import AHEAD, law_table
from analysis.scaling import Experiment, cell_table, efficiency_table
from analysis.variants import variant_table


@dataclass(frozen=True)
class Section:
    """A figure, what to read in it, and the table behind it."""

    name: str  # of its files
    title: str
    text: str
    table: pd.DataFrame  # all of it goes into the CSV
    plot: Callable[[Axes], None] | None = None
    shown: pd.DataFrame | None = None  # what the page shows of the table
    height: float = 3.4  # of the figure, in inches


def efficiency(found: Experiment, losses: pd.DataFrame) -> Section | None:
    table = efficiency_table(found.series)
    if table.empty:
        return None
    text = (
        "Throughput per rank, as a share of the baseline's (the fewest ranks). Bars are 95 % intervals; 100 % is "
        "ideal. The serial fraction (Karp and Flatt) is the share of the baseline's time that ranks do not shorten: if "
        "it stays the same as ranks are added, part of the work is not divided; if it rises, what they add to it does."
    )
    return Section("efficiency", "Efficiency", text, table, figures.efficiency(table), tables.efficiency(table))


def laws(found: Experiment, losses: pd.DataFrame) -> Section | None:
    efficiencies = efficiency_table(found.series)
    table = law_table(efficiencies)
    if table.empty:
        return None
    text = (
        "Laws of scaling, each fitted to all but the most ranks and asked for these: the one whose error is least is "
        f"drawn, fitted to all, up to {AHEAD[-1]} times the most ranks. n is ranks over the baseline's. An error says "
        "what a law is worth one step ahead; further ahead it says less, and nothing of a network that is full."
    )
    return Section("laws", "How it would go on", text, table, figures.laws(efficiencies, table), tables.laws(table))


def throughput(found: Experiment, losses: pd.DataFrame) -> Section:
    table = cell_table(found.cells)
    text = (
        "Input tokens per second over all ranks, with 95 % intervals, against lines of the baselines' slope. "
        "Batch: sequences per step over all ranks; block: steps in a block of the bootstrap."
    )
    plot = figures.throughput(table, efficiency_table(found.series))
    return Section("throughput", "Throughput", text, table, plot, tables.throughput(table))


def variants(found: Experiment, losses: pd.DataFrame) -> Section | None:
    table = variant_table(found.cells, losses)
    if table.empty:
        return None
    bases = ", ".join(dict.fromkeys(table["over"]))
    text = (
        f"What was told apart with --by, at equal ranks and batch. Ratio: step time over that of {bases}, below 1 is "
        "faster; intervals are 95 %. The loss is the last one that was scored: it is fair among runs that ended after "
        "equally many tokens."
    )
    labels = table["variant"] + ", " + table["ranks"].astype(str) + " ranks, batch " + table["global_batch"].astype(str)
    plot = figures.side_by_side(labels, table["ms"], table[["ms_low", "ms_high"]], "ms per step")
    return Section("variants", "Side by side", text, table, plot, tables.variants(table), 1 + 0.3 * len(table))


def breakdown(found: Experiment, losses: pd.DataFrame) -> Section:
    table = breakdown_table(found.cells)
    text = (
        "Parts are those of each step's slowest rank, in milliseconds; with the residual, which no traced part covers, "
        "they sum to the step. Exposed: waiting for gradients after backward, slow ranks included. Checkpoints and "
        "evaluations (how often × how long) lie between steps and do not count."
    )
    plot, shown = figures.breakdown(table), tables.breakdown(table)
    return Section("breakdown", "Where a step's time goes", text, table, plot, shown, _bars(table))


def communication(found: Experiment, losses: pd.DataFrame) -> Section | None:
    table = communication_table(found.cells)
    if table.empty:
        return None
    text = (
        "Exchange time during which a rank computed, and its wait for the rest; means over ranks. Payload is what a "
        "rank gives to be exchanged per step, wire bytes are what it sends for that; bus bandwidth is wire bytes over "
        "the time an exchange was under way, waiting for slower ranks included. In shared memory nothing goes over a "
        "wire."
    )
    plot, shown = figures.communication(table), tables.communication(table)
    return Section("communication", "Hidden and exposed communication", text, table, plot, shown, _bars(table))


def expectation(found: Experiment, losses: pd.DataFrame) -> Section | None:
    table = expectation_table(found.cells)
    if table.empty:
        return None
    text = (
        "What reduce.compressor = auto expected of its choice when training began, and what came, in the mean. The "
        "step is the slowest rank's. An exchange lasts from a bucket's last gradient until its sum is taken up, on "
        "average over ranks; a rank that computes takes it up late."
    )
    return Section("expectation", "What auto expected", text, table, shown=tables.expectation(table))


def horovod(found: Experiment, losses: pd.DataFrame) -> Section | None:
    launches = [one for cell in found.cells for one in cell.repeats if one.launch.horovod_timeline.exists()]
    if not launches:
        return None
    timelines = {one.name: Timeline(one.launch.horovod_timeline) for one in launches}
    table = pd.concat([timeline.table().assign(launch=name) for name, timeline in timelines.items()])
    told = " ".join(f"{name}: {_of_horovod(timeline)}" for name, timeline in timelines.items())
    text = (
        "From Horovod's own timeline, in seconds of the whole launch, its start included; what is done for a fused "
        "batch counts once. Negotiation is the time in which a tensor waited until all ranks were ready for it, mostly "
        f"for a late rank and not for the network. {told}"
    )
    return Section("horovod", "Inside Horovod", text, table, shown=tables.horovod(table))


def _of_horovod(timeline: Timeline) -> str:
    late = [f"rank {rank} {who.times} times ({who.wait_us / 1e6:.2f} s)" for rank, who in sorted(timeline.late.items())]
    known = f" The last to be ready, while its tensors were new, was {', '.join(late)}." if late else ""
    cut = " The file is cut off." if timeline.cut else ""
    return f"data moved for {timeline.moving_s:.2f} s, tensors waited for {timeline.waiting_s:.2f} s.{known}{cut}"


def ranks(found: Experiment, losses: pd.DataFrame) -> Section:
    table = rank_table(found.cells)
    most = found.cells[-1].repeats[0]
    text = (
        "Own work is what a rank does itself in a step: everything traced but the wait for gradients. A rank well "
        "above the median holds all others up. In the figure, of the first launch with the most ranks, one that is "
        "always slow is a bright line, a moment in which a host was slow a bright patch over its ranks. Ranks that are "
        "alike are the slowest equally often."
    )
    if most.launch.size == 1:
        return Section("ranks", "Ranks", text, table, shown=tables.ranks(table))
    plot = figures.own_work(own_over_median(most), most.step, most.launch.facts["hosts"], most.name)
    height = 1.6 + 0.25 * min(most.launch.size, 16)
    return Section("ranks", "Ranks", text, table, plot, tables.ranks(table), height)


def clocks(found: Experiment, losses: pd.DataFrame) -> Section | None:
    table = clock_table(found.measurements)
    if table.empty:
        return None
    off = table[table["off_by_ms"] > 0]
    worst = off.sort_values("off_by_ms").tail(1)
    told = "".join(
        f" The clock of rank {row.rank} on {row.host} ({row.launch}) is off by {tables.number(row.off_by_ms)} ms or "
        "more: look at how that host keeps time."
        for row in worst.itertuples()
    )
    text = (
        "What was measured between each rank's clock and rank 0's when the run started, and what exchanges say of it: "
        "none can be over on one rank before it has begun on another. No other figure here compares clocks of two "
        f"ranks: durations are each rank's own.{told}"
    )
    return Section("clocks", "Clocks", text, table, shown=tables.clocks(table))


def steps(found: Experiment, losses: pd.DataFrame) -> Section:
    table = pd.concat(
        [
            pd.DataFrame({"step": one.step, "step_ms": one.step_s * 1e3, "tokens": one.tokens}).assign(
                launch=one.name, ranks=cell.ranks, global_batch=cell.global_batch, variant=cell.label
            )
            for cell in found.cells
            for one in cell.repeats
        ]
    )
    return Section("steps", "Step by step", "Every measured step of every launch.", table, figures.step_times(table))


def loss(found: Experiment, losses: pd.DataFrame) -> Section | None:
    if losses.empty:
        return None
    text = "From metrics.csv: training (lines) and validation (dashed)."
    return Section("losses", "Loss", text, losses, figures.losses(losses))


def _bars(table: pd.DataFrame) -> float:
    """Height of a figure with a bar per row."""
    return 1.5 + 0.5 * len(table)


# In the page's order; a function returns None when there is nothing to show.
SECTIONS = (
    variants,
    efficiency,
    laws,
    throughput,
    breakdown,
    communication,
    expectation,
    horovod,
    ranks,
    clocks,
    steps,
    loss,
)
