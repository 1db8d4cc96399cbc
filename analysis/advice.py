"""The report's first three sentences: how well it scales, what costs most, what to try next.

Rules over the same numbers that the tables show; nothing else is known here.
"""

import pandas as pd

from analysis import bootstrap
from analysis.breakdown import communication_table, loss_ms, parts_ms, slowest_rank
from analysis.run_folder import SHARED_MEMORY
from analysis.scaling import Cell, Experiment, Series
from analysis.tables import percent

WORTH = 0.03  # a loss below this share of the step is not worth a change
WIDE = 0.10  # an interval of efficiency wider than this decides nothing
UNEVEN = 1.05  # a rank that works this much longer than the median one holds the others up

WORDS = {
    "input": "waiting for input",
    "forward": "the forward pass",
    "backward": "the backward pass",
    "exposed": "exposed communication (waiting for gradients)",
    "optimizer": "the optimizer",
    "residual": "the loop around the traced parts",
}


_HOW = {
    "weak": "when the batch grows with the ranks (weak scaling)",
    "strong": "when the batch stays the same (strong scaling)",
}


def sentences(experiment: Experiment, efficiency: pd.DataFrame) -> list[str]:
    """Three paragraphs of plain text, one or two sentences each."""
    series, cell = _leading(experiment)
    if series:
        lost = loss_ms(series, cell)
    else:
        lost = {name: ms for name, ms in parts_ms(cell).items() if name not in ("forward", "backward")}
    text = _measure_better(series, efficiency) or _next(series, cell, lost)
    best = f"{_fastest(experiment, cell)}{_scaling(experiment, cell, efficiency)}"
    return [best, _cost(series, cell, lost), f"{text[0].upper()}{text[1:]}."]


def _leading(experiment: Experiment) -> tuple[Series | None, Cell]:
    """What the sentences are about: the first kind of scaling at most ranks; of variants there, the fastest."""
    if not experiment.cells[0].variant:
        series = experiment.series[0] if experiment.series else None
        return series, series.cells[-1] if series else experiment.cells[-1]
    most = [cell for cell in experiment.cells if cell.ranks == experiment.cells[-1].ranks]
    cell = max(most, key=lambda cell: cell.throughput)
    return next((one for one in experiment.series if one.cells[-1] is cell), None), cell


def _fastest(experiment: Experiment, cell: Cell) -> str:
    """A sentence about the variants beside a cell, which is the fastest; empty without any."""
    place = cell.ranks, cell.global_batch
    others = [one for one in experiment.cells if (one.ranks, one.global_batch) == place and one is not cell]
    if not others:
        return ""
    second = max(others, key=lambda one: one.throughput)
    low, high = bootstrap.interval(cell.draws / second.draws)
    start = f"Of {len(others) + 1} variants at {_ranks(cell.ranks)}, {cell.label} is the fastest"
    if low <= 1:
        return f"{start}, by no more than noise before {second.label}. "
    gain = f"{cell.throughput / second.throughput:.2f} times the tokens per second of {second.label}"
    single = "; one run each, and runs differ by more than their steps" if len(cell.repeats) == 1 else ""
    return f"{start}: {gain} (95 % interval {low:.2f} to {high:.2f}{single}). "


def _ranks(count: int) -> str:
    return "1 rank" if count == 1 else f"{count} ranks"


def _scaling(experiment: Experiment, cell: Cell, table: pd.DataFrame) -> str:
    table = table[table["variant"] == cell.label]
    if table.empty and len({one.ranks for one in experiment.cells}) > 1:
        return f"{cell.label} was measured on {_ranks(cell.ranks)} alone, so nothing can be said about its scaling yet."
    if table.empty:
        return (
            f"Only one number of ranks was measured ({cell.ranks}, {cell.throughput:,.0f} tokens/s), so nothing can be "
            "said about scaling yet."
        )
    parts = []
    for one in (one for one in experiment.series if one.cells[-1].variant == cell.variant):
        last = table[table["series"] == one.title].iloc[-1]
        parts.append(
            f"{_ranks(last['ranks'])} process {last['speedup']:.2f} times the tokens per second of "
            f"{_ranks(last['baseline_ranks'])}, {percent(last['efficiency'])} of the ideal "
            f"{last['ranks'] / last['baseline_ranks']:g} times (95 % interval {percent(last['efficiency_low'])} to "
            f"{percent(last['efficiency_high'])}), {_HOW[one.kind]}"
        )
    text = (f"With {cell.label}, " if cell.variant else "") + ". ".join(parts) + "."
    above = table[table["above_100"]]
    if not above.empty:
        clear = (above["efficiency_low"] > 1).any()
        text += " More than 100 % is not a gain of scaling: " + (
            "the baseline was slowed by something, or the share of one rank fits its caches better."
            if clear
            else "here it lies within the noise."
        )
    return text


def _cost(series: Series | None, cell: Cell, lost: dict[str, float]) -> str:
    step = sum(parts_ms(cell).values())
    worst = max(lost, key=lost.get)
    if series is None:
        return (
            f"A step takes {step:.1f} ms; beyond forward and backward, most of it is {WORDS[worst]}: "
            f"{lost[worst]:.1f} ms, {percent(lost[worst] / step)} of the step."
        )
    total = sum(lost.values())
    start = f"At {_ranks(cell.ranks)} a step takes {step:.1f} ms"
    if total <= 0 or lost[worst] <= 0:
        return f"{start}, no more than ideal scaling from {_ranks(series.baseline.ranks)} would give."
    return (
        f"{start}, {total:.1f} ms more than ideal scaling from {_ranks(series.baseline.ranks)} would give; "
        f"most is lost to {WORDS[worst]}: {lost[worst]:.1f} ms, {percent(lost[worst] / step)} of the step."
    )


def _measure_better(series: Series | None, table: pd.DataFrame) -> str:
    """Advice to measure again, when the noise is larger than what there is to see; else an empty text."""
    if series is None:
        return ""
    last = table[table["series"] == series.title].iloc[-1]
    if last["efficiency_high"] - last["efficiency_low"] <= WIDE:
        return ""
    return (
        "measure again with more steps or repeats on a machine that does nothing else; the interval "
        f"({percent(last['efficiency_low'])} to {percent(last['efficiency_high'])}) is too wide to act on"
    )


def _next(series: Series | None, cell: Cell, lost: dict[str, float]) -> str:
    step = sum(parts_ms(cell).values())
    worst = max(lost, key=lost.get)
    if lost[worst] < WORTH * step or (series is not None and sum(lost.values()) <= 0):
        if series is None:
            return "measure the same configuration on another number of ranks, which makes the efficiency known"
        return f"more ranks; at {_ranks(cell.ranks)} nothing that is worth a change is lost"
    rank, host, ratio = slowest_rank(cell)
    if ratio > UNEVEN and worst in ("input", "forward", "backward", "exposed"):
        return (
            f"look at rank {rank} on host {host} first: its own work takes {ratio * 100 - 100:.0f} % longer than the "
            "median rank's, and the others wait for it, which counts as exposed communication"
        )
    if worst in ("forward", "backward"):
        return _slow_compute(series, cell)
    return {
        "exposed": _slow_exchange,
        "input": lambda cell: (
            "prepare batches ahead of time or put the data on faster storage; the ranks wait for their input"
        ),
        "optimizer": lambda cell: (
            "a larger train.global_batch, so that fewer updates serve the same tokens; every rank repeats the whole "
            "update"
        ),
        "residual": lambda cell: (
            "a larger train.micro_batch and a larger train.log_every; the time goes into the loop, not the model"
        ),
    }[worst](cell)


def _slow_exchange(cell: Cell) -> str:
    row = communication_table([cell]).iloc[0]
    launch = cell.repeats[0].launch
    reduce = launch.run.about["config"].get("reduce", {})
    if reduce.get("share_memory") is False and launch.facts["device"] == "cpu" and len(set(launch.facts["hosts"])) == 1:
        return "set reduce.share_memory, which is false: ranks of one host can sum gradients in memory that they share"
    could_hide = row["exposed_ms"] + row["hidden_ms"] < parts_ms(cell)["backward"]
    plain = reduce.get("compressor") == "none"
    if plain and row["hidden_share"] < 0.5 and row["exchanges"] < 4 and could_hide:
        return (
            f"a smaller reduce.bucket_mb (now {reduce.get('bucket_mb')}): with so few buckets "
            f"({row['exchanges']:.0f} per step) sending starts late in the backward pass"
        )
    work = "more sequences per rank and step (a larger train.global_batch), which exchanges gradients less often"
    if SHARED_MEMORY in row["through"]:  # a compressor would save nothing
        return work
    if plain:
        return f"{work}, or a compressor (reduce.compressor is none; {row['payload_mb']:.1f} MB are sent per step)"
    return f"{work}, or a stronger compressor than {reduce.get('compressor')}"


def _slow_compute(series: Series | None, cell: Cell) -> str:
    launch = cell.repeats[0].launch
    busy, cores = launch.ranks_per_host * launch.facts["threads"], launch.facts["cores"]
    if launch.facts["device"] == "cpu" and busy > cores:
        return (
            f"fewer ranks or threads per host: {launch.ranks_per_host} ranks of {launch.facts['threads']} threads "
            f"share {cores} cores, so computing itself becomes slower"
        )
    if series is not None and series.kind == "strong":
        return "a larger train.global_batch; the share of one rank has become too small to compute efficiently"
    if launch.facts["device"] == "cpu" and launch.ranks_per_host > 1:
        return (
            "more hosts with fewer ranks each; computing slows down when ranks of one host share its memory and "
            f"exchange gradients on its cores ({launch.ranks_per_host} ranks on {cores} cores)"
        )
    return "find out what slows computing on all ranks, beginning with clock rates and other processes"
