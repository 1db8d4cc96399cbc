"""`python -m analysis replay`: what the smaller rows of published tables say of their largest, and how wrong it is."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import figures, published, tables
from analysis.errors import AnalysisError
from analysis.published import Published
from analysis.step_model import predict, trivial

HELP = "predict the largest row of each table in a file of published measurements from the smaller ones"
DESCRIPTION = """
For each table in FILE, fit a model of the step's time to all rows but those of the most devices, predict these,
and show by how much that is wrong, beside what the trivial baseline says: a micro-batch's time and a constant,
through the two smallest rows, or the second one's time if both have equally long passes. The 90 % interval is as
wide as 9 in 10 errors were when, in the other tables, smaller rows were predicted in the same way.
"""
EPILOG = f"""
FILE is a CSV with the columns {", ".join(published.NAMES)},
{", ".join(published.NUMBERS)}, and maybe note; unit is {published.PER_TOKEN}, or counts sequences or images.
Rows whose note says that they are not a valid baseline, or of different hardware, are left out.
"""
SHARE = 0.9  # of the predictions that an interval should hold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the measurements")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for replay.csv and replay.png; may exist")


def run(arguments: argparse.Namespace) -> int:
    """Print the score.

    Raises:
        AnalysisError: the file cannot be read, or no table in it has enough rows.
    """
    found = published.read(arguments.file)
    score = scorecard(found)
    if score.empty:
        raise AnalysisError(
            f"{arguments.file} has no table of three numbers of devices, two of which predict the third"
        )
    print(tables.replay(score).to_string(index=False))
    print()
    for line in _summary(score, found):
        print(line)
    if arguments.out:
        try:
            arguments.out.mkdir(parents=True, exist_ok=True)
            score.to_csv(arguments.out / "replay.csv", index=False, lineterminator="\n")
            (arguments.out / "replay.png").write_bytes(
                figures.draw(figures.errors(score), "light", 1 + 0.2 * len(score))
            )
        except OSError as error:
            raise AnalysisError(f"cannot write to {arguments.out}: {error.strerror}") from None
        print(f"All of it is in {arguments.out}")
    return 0


def scorecard(found: Sequence[Published]) -> pd.DataFrame:
    """A row for each largest row of a table: on what it was calibrated, what came, errors (predicted / measured - 1).

    `low_s`, `high_s` are the interval's ends; NaN if there is too little to say how wrong predictions are.
    """
    tried = [_errors_below(table) for table in found]
    rows = []
    for number, table in enumerate(found):
        if len(set(table.devices)) < 3:
            continue
        largest = table.devices == table.devices.max()
        known, wanted = table.among(~largest), table.among(largest)
        others = np.concatenate([np.empty(0), *(errors for other, errors in enumerate(tried) if other != number)])
        width = _width(others)
        for index, (step_s, base_s) in enumerate(zip(predict(known, wanted), trivial(known, wanted), strict=True)):
            measured_s = wanted.step_s[index]
            rows.append(
                {
                    "table": table.name,
                    "calibrated_on": " ".join(f"{count:g}" for count in known.devices),
                    "devices": int(wanted.devices[index]),
                    "accumulation": int(wanted.accumulation[index]),
                    "measured_s": measured_s,
                    "predicted_s": step_s,
                    "low_s": step_s / (1 + width),
                    "high_s": step_s / (1 - width) if width < 1 else np.inf,
                    "error": step_s / measured_s - 1,
                    "trivial_error": base_s / measured_s - 1,
                }
            )
    return pd.DataFrame(rows)


def _errors_below(table: Published) -> np.ndarray:
    """Relative errors of predictions of rows that are neither the largest nor of the two smallest sizes."""
    sizes = sorted(set(table.devices))
    errors = [np.empty(0)]
    for size in sizes[2:-1]:
        known, wanted = table.among(table.devices < size), table.among(table.devices == size)
        errors.append(predict(known, wanted) / wanted.step_s - 1)
    return np.concatenate(errors)


def _width(errors: np.ndarray) -> float:
    """What another error does not exceed in `SHARE` of cases, if it is like these; NaN if they are too few to say so.

    As much on either side, since few say little of their sign. (Split conformal prediction: Vovk et al. 2005.)
    """
    place = math.ceil((len(errors) + 1) * SHARE)
    return float(np.sort(np.abs(errors))[place - 1]) if place <= len(errors) else np.nan


def _summary(score: pd.DataFrame, found: Sequence[Published]) -> list[str]:
    ours, theirs = score["error"].abs(), score["trivial_error"].abs()
    inside = score["measured_s"].between(score["low_s"], score["high_s"])
    lines = [
        f"Median absolute error {tables.percent(ours.median())}, largest {tables.percent(ours.max())}; "
        f"of the trivial baseline {tables.percent(theirs.median())} and {tables.percent(theirs.max())}.",
    ]
    if told := int(score["low_s"].notna().sum()):
        lines.append(f"{inside.sum()} of {told} lie in their {SHARE:.0%} interval.")
    few = sum(len(set(table.devices)) < 3 for table in found)
    foreign = sum(len(table.foreign) for table in found)
    lines.append(
        f"{len(found) - few} of {len(found)} tables were used; the others have fewer than three numbers of devices"
        + (f". {foreign} rows are left out for what their notes say." if foreign else ".")
    )
    return lines
