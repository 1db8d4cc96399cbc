"""Step times side by side: `python -m benchmarks.side_by_side`.

Every contender is a job of its own. The jobs take turns, a block of steps each, round after round. What is compared
are ratios within a round.
"""

import argparse
import functools
import subprocess
import tempfile
from pathlib import Path
from typing import IO

import pandas as pd
from tqdm import tqdm

from benchmarks import record
from benchmarks.contenders import PLAIN, find, known
from benchmarks.jobs import Job, Jobs, Ranks, options

# A GPT-2 of 4.2 M parameters, 4 x 128 tokens per rank: small on purpose, so that communication is not
# drowned in arithmetic.
SETTINGS = {
    "data.sequence_length": 128,
    "model.layers": 4,
    "model.hidden": 256,
    "model.heads": 4,
    "train.steps": 1_000_000,
    "train.micro_batch": 4,
    "run.threads": 1,
}


def launch(controller: str, ranks: int, command: list[str], log: IO) -> Ranks:
    """On this machine alone, as anyone starts it."""
    command = ["horovodrun", f"--{controller}", "-np", str(ranks), *command]
    return Ranks([subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)])


def compare(controller: str, names: list[str], args: argparse.Namespace, folder: Path) -> tuple[list[dict], dict]:
    """Seconds per step, a row for each round and contender; and who did not complete, with the reason."""
    settings = SETTINGS | {"data.path": args.data, "train.global_batch": SETTINGS["train.micro_batch"] * args.ranks}
    start = functools.partial(launch, controller, args.ranks)
    times = []
    with Jobs() as jobs:
        for name in names:
            words = folder / f"{controller}-{name}"
            words.mkdir()
            jobs.add(Job(name, args.ranks, words, start, args.config, options(settings) + args.settings))
        for job in jobs.in_turn(0):
            jobs.block(job, args.steps)
        for number in tqdm(range(1, args.rounds + 1), desc=controller, unit="round"):
            for job in jobs.in_turn(number):
                seconds = jobs.block(job, args.steps)
                if seconds is not None:
                    times.append({"controller": controller, "contender": job.name, "round": number, "seconds": seconds})
    if "ours" in jobs.incomplete:
        raise SystemExit(1)
    return times, jobs.incomplete


def show(controller: str, table: pd.DataFrame) -> None:
    """Print a table: median step time, and the ratio of our time to theirs, median and quartiles over rounds."""
    rows = table[table["controller"] == controller]
    print(f"\n{controller}: median over {rows['rounds'].max()} rounds")
    print(f"{'':16}{'ms/step':>9}{'ours/it':>9}  quartiles")
    for row in rows.itertuples():
        spread = f"{row.lower_quartile:.3f} - {row.upper_quartile:.3f}"
        print(f"{row.contender:16}{row.ms:9.1f}{row.ratio:9.3f}  {spread}   {find(row.contender).prepare.__doc__}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="gpt-tiny", help="configuration to start from (default: %(default)s)")
    parser.add_argument("--data", default="data/embedded", help="prepared data (default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--controllers", nargs="+", default=["mpi", "gloo"], choices=["mpi", "gloo"])
    parser.add_argument("--contenders", nargs="+", type=known, default=[function.__name__ for function in PLAIN])
    parser.add_argument("--rounds", type=int, default=15, help="turns of every contender (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="steps in a turn (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for the times, ratios and figure (default: runs/bench-TIME)")
    args, args.settings = parser.parse_known_args()
    return args


def main() -> None:
    args = _arguments()
    out = args.out or record.default_folder()
    names = list(dict.fromkeys(["ours", *args.contenders]))
    settings = {"config": args.config, **SETTINGS, "also": args.settings}
    times, incomplete = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for controller in args.controllers:
            measured, incomplete[controller] = compare(controller, names, args, Path(folder))
            times += measured
            table = pd.DataFrame(times)
            completed = [row["contender"] not in incomplete[row["controller"]] for row in times]
            ratios = record.ratios(table[completed])
            about = {"kind": "side_by_side", "ranks": args.ranks, "settings": settings, "did_not_complete": incomplete}
            record.write(out, table, ratios, about)
            record.ratio_figure(ratios, out / "ratios.png")
            show(controller, ratios)
    print(f"\nThe times, their ratios and a figure are in {out}.")


if __name__ == "__main__":
    main()
