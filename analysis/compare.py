"""`python -m analysis compare`: are two runs equal, or how much faster is one?"""

import argparse
from pathlib import Path

import numpy as np

from analysis import bootstrap
from analysis.errors import AnalysisError
from analysis.match import accept, differences
from analysis.measure import Measurement, measure_runs
from analysis.run_folder import Run, find_runs

HELP = "compare two runs: losses bit by bit, and the difference of their step times"
DESCRIPTION = """
Compare run B with run A: what differs between them, whether their losses are equal bit by bit, and the
difference of their median step times with a 95 % interval (moving-block bootstrap over steps and repeats).
A and B may each be a folder of repeats.
"""
EPILOG = "exit code: 0; with --assert-equal 0 when all losses are equal and 1 when not; 2 for a mistake"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A", help="a run folder, or a folder of repeats")
    parser.add_argument("b", type=Path, metavar="B", help="another")
    parser.add_argument(
        "--assert-equal",
        action="store_true",
        help="only compare the losses in metrics.csv; exit with 1 unless every step's are equal bit by bit",
    )
    parser.add_argument(
        "--warmup", type=int, metavar="K", help="steps of each launch to drop (default: 10 %%, 3 to 20)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison.

    Raises:
        AnalysisError: from reading; --assert-equal with a folder of several runs.
    """
    a, b = find_runs([arguments.a]), find_runs([arguments.b])
    single = len(a) == len(b) == 1
    if arguments.assert_equal:
        if not single:
            raise AnalysisError(f"--assert-equal compares one run with one run, not {len(a)} with {len(b)}")
        equal, sentence = same_losses(a[0], b[0])
        print(sentence)
        return 0 if equal else 1
    if single and all((one.path / "metrics.csv").exists() for one in (*a, *b)):
        print(same_losses(a[0], b[0])[1])
    first, second = (_repeats(runs, arguments.warmup) for runs in (a, b))
    for key, values in differences([one.launch for one in (*first, *second)]).items():
        if key == "run.dir":
            continue
        print(f"differs: {key}: " + ", ".join(f"{value} ({', '.join(names)})" for value, names in values.items()))
    print(step_time_difference(first, second))
    return 0


def _repeats(runs: list[Run], warmup: int | None) -> list[Measurement]:
    """Measurements of one side, which must be repeats of one another."""
    measurements = measure_runs(runs, warmup)[0]
    launches = [one.launch for one in measurements]
    accept(launches, ())
    for name, values in (("ranks", {one.size for one in launches}), ("batch", {one.global_batch for one in runs})):
        if len(values) > 1:
            raise AnalysisError(f"{runs[0].path.parent} does not hold repeats: {name} is {sorted(values)}")
    return measurements


def same_losses(a: Run, b: Run) -> tuple[bool, str]:
    """Whether training and validation losses agree at every step, to the last bit, and a sentence on it."""
    left, right = (one.metrics().set_index("step")[["loss", "validation_loss"]] for one in (a, b))
    only = left.index.symmetric_difference(right.index)
    if len(only):
        where = a.path if only[0] in left.index else b.path
        return False, f"losses differ: step {only[0]} is only in {where} ({len(only)} steps are in one run alone)"
    if left.isna().all(axis=None):
        raise AnalysisError(f"{a.path / 'metrics.csv'} holds no loss to compare")
    # Bits, so that 0.0 and -0.0 differ; every NaN is the same: it stands for an empty field.
    bits = [table.fillna(np.nan).to_numpy(dtype=np.float64).view(np.int64) for table in (left, right)]
    both_nan = (left.isna() & right.isna()).to_numpy()
    unequal = ((bits[0] != bits[1]) & ~both_nan).any(axis=1)
    if not unequal.any():
        return True, f"losses are equal bit by bit at all {len(left)} logged steps"
    step = left.index[np.argmax(unequal)]
    values = [
        " and ".join(f"{value!r}" for value in table.loc[step].dropna().tolist()) or "none" for table in (left, right)
    ]
    return False, (
        f"losses differ: first at step {step}, {values[0]} against {values[1]} "
        f"({int(unequal.sum())} of {len(left)} logged steps)"
    )


def step_time_difference(a: list[Measurement], b: list[Measurement]) -> str:
    """A sentence on the difference of median step times, B minus A, with its 95 % interval."""
    levels = [np.mean([np.median(one.step_s) for one in side]) * 1e3 for side in (a, b)]
    draws = [
        bootstrap.median_draws([one.step_s for one in side], (number,)) * 1e3 for number, side in enumerate((a, b))
    ]
    low, high = bootstrap.interval((draws[1] - draws[0]) / draws[0])
    change = levels[1] / levels[0] - 1
    verdict = "no difference seen" if low <= 0 <= high else f"B is {'slower' if change > 0 else 'faster'}"
    lengths = sorted({bootstrap.block_length(one.step_s) for one in (*a, *b)})
    return (
        f"median step time: A {levels[0]:.3f} ms, B {levels[1]:.3f} ms, difference {levels[1] - levels[0]:+.3f} ms "
        f"({change:+.2%}, 95 % interval {low:+.2%} to {high:+.2%}): {verdict}\n"
        f"  from {sum(len(one.step) for one in a)} and {sum(len(one.step) for one in b)} steps, "
        f"{len(a)} and {len(b)} repeats, blocks of {lengths[0]} to {lengths[-1]} steps"
        + ("; with one repeat the interval knows nothing of how runs differ" if 1 in (len(a), len(b)) else "")
    )
