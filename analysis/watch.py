"""`python -m analysis watch`: a run's figures while it trains."""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from analysis.errors import AnalysisError, TooFewStepsError
from analysis.match import facts
from analysis.measure import ALL_PARTS, Measurement, together
from analysis.run_folder import Launch, Run, find_runs
from analysis.steps import RankSteps, rank_steps
from analysis.tables import number, percent

HELP = "follow a run while it trains: step time and its parts, the slowest rank, the loss"
DESCRIPTION = """
Show, over and over, what the last steps of RUN's newest launch took and what of: the figures of the report, while it
trains. It only reads; it ends when the run has taken all its steps, or with Ctrl-C.
"""
EPILOG = """
example: python -m analysis watch runs/first
         python -m analysis watch runs/first --once
"""
_RECORDS_PER_STEP = 1000  # are read of each rank's trace, at most
_CLEAR = "\x1b[H\x1b[J"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--steps", type=int, default=50, metavar="K", help="how many to look at (default: %(default)s)")
    parser.add_argument(
        "--every", type=float, default=5, metavar="S", help="seconds between looks (default: %(default)s)"
    )
    parser.add_argument("--once", action="store_true", help="look once")


def run(arguments: argparse.Namespace) -> int:
    """Print until it ends.

    Raises:
        AnalysisError: no such run, or a damaged trace.
    """
    if arguments.steps < 1 or not 0.1 <= arguments.every < 1e6:
        raise AnalysisError("--steps must be 1 or more, --every 0.1 or more")
    try:
        while True:
            found = find_runs([arguments.folder])
            if len(found) > 1:
                raise AnalysisError(f"{arguments.folder} holds {len(found)} runs; give the folder of one")
            text, over = look(found[0], arguments.steps)
            print((_CLEAR if sys.stdout.isatty() and not arguments.once else "") + text, flush=True)
            if over or arguments.once:
                return 0
            time.sleep(arguments.every)
    except KeyboardInterrupt:
        return 0


def look(found: Run, steps: int) -> tuple[str, bool]:
    """What there is to say now, and whether all steps were taken."""
    launch = found.launches[-1]
    wanted = facts(launch).get("train.steps", 0)  # a resume may have changed it
    try:
        one = _last_steps(launch, steps)
    except TooFewStepsError:
        return f"{launch.name}: no step is over on all of {launch.size} ranks yet", False
    taken = int(one.step[-1]) + 1
    share = f" of {wanted:,} ({percent(taken / wanted)})" if wanted else ""
    lines = [f"{launch.name}: step {taken:,}{share}, {launch.size} rank{'s' * (launch.size > 1)}", *_speed(one)]
    if launch.size > 1:
        lines += [_slowest(one), _exchange(one)]
    if loss := _loss(found):
        lines.append(loss)
    return "\n".join(lines), bool(wanted) and taken >= wanted


def _last_steps(launch: Launch, steps: int) -> Measurement:
    """Measure the last steps that all ranks have taken.

    Raises:
        TooFewStepsError: there are none yet.
    """
    traces = launch.traces(complete=False)
    if len(traces) < launch.size:
        raise TooFewStepsError("some ranks have no trace yet")
    ranks = [_of(trace.tail(steps * _RECORDS_PER_STEP)) for trace in traces]
    common = ranks[0].step
    for rank in ranks[1:]:
        common = np.intersect1d(common, rank.step)
    if not len(common):
        raise TooFewStepsError("no step is over on all ranks yet")
    return together(launch, ranks, common[-steps:])


def _of(trace) -> RankSteps:
    """A trace's steps, without one that its beginning has cut."""
    found = rank_steps(trace)
    return found.only(found.step[1:]) if trace.first else found


def _speed(one: Measurement) -> list[str]:
    step_s = one.step_s.mean()
    parts = ", ".join(f"{name} {number(one.parts_s[name].mean() * 1e3)}" for name in ALL_PARTS)
    tokens = number(float(one.tokens.sum() / one.step_s.sum()))
    late = number(float(np.quantile(one.step_s, 0.95)) * 1e3)
    return [
        f"last {len(one.step)}: {number(step_s * 1e3)} ms a step (95th percentile {late}), {tokens} tokens/s",
        f"of it, in ms: {parts}",
    ]


def _slowest(one: Measurement) -> str:
    own = one.own_s.mean(axis=1)
    rank, median = int(own.argmax()), float(np.median(own))
    times = float((one.own_s.argmax(axis=0) == rank).mean())
    above = own[rank] / max(median, 1e-9) - 1
    host = one.launch.facts["hosts"][rank]
    return f"slowest: rank {rank} on {host}, {above * 100:+.1f} % over the median rank, in {times * 100:.0f} % of steps"


def _exchange(one: Measurement) -> str:
    exposed, hidden = one.ranks["exposed_s"].mean(), one.hidden_s.mean()
    share = percent(hidden / (exposed + hidden)) if exposed + hidden else "–"
    payload = number(float(one.payload_bytes.mean()) / 1e6)
    return f"exchange: {share} hidden, {number(exposed * 1e3)} ms exposed, {payload} MB given to it per rank and step"


def _loss(found: Run) -> str:
    if not (found.path / "metrics.csv").exists():
        return ""
    try:
        table = found.metrics()
    except AnalysisError:  # its first row is being written
        return ""
    said = []
    for name, words in (("loss", "loss"), ("validation_loss", "validation loss")):
        known = table.dropna(subset=name)
        if len(known):
            said.append(f"{words} {known[name].iloc[-1]:.4f} after step {known['step'].iloc[-1]:,}")
    return ", ".join(said)
