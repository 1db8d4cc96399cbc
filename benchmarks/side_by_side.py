"""Step times side by side: `python -m benchmarks.side_by_side`.

Every contender is a job of its own. The jobs take turns, a block of steps each, round after round, and all
but one are stopped (SIGSTOP) meanwhile, so that drifts of the machine hit everyone alike and nobody's
background threads cost another. What is compared are ratios within a round.
"""

import argparse
import contextlib
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pandas as pd
import psutil
from tqdm import tqdm

from benchmarks import record
from benchmarks.contenders import CONTENDERS

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


class Job:
    """A contender's ranks under their launcher."""

    def __init__(self, name: str, ranks: int, controller: str, folder: Path, args: argparse.Namespace):
        self.name, self.ranks = name, ranks
        self.words = folder / f"{controller}-{name}"
        self.words.mkdir()
        settings = SETTINGS | {"data.path": args.data, "train.global_batch": 4 * ranks}
        options = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
        command = [
            *("horovodrun", f"--{controller}", "-np", str(ranks), "python", "-m", "benchmarks.rank", name, args.config),
            *("--words", str(self.words), "--blocks", str(args.rounds), "--steps", str(args.steps)),
            *options,
            *args.settings,
        ]
        self.log = open(self.words / "log", "w")  # noqa: SIM115 - open as long as the job
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, start_new_session=True)

    def block(self, number: int) -> float:
        """Let the job do one block; returns seconds per step of its slowest rank."""
        self._signal(signal.SIGCONT)
        (self.words / f"go-{number}").touch()
        done = [self.words / f"done-{number}-{rank}" for rank in range(self.ranks)]
        while not all(path.exists() for path in done):
            if self.process.poll() not in (None, 0):
                raise SystemExit(f"{self.name} failed:\n{(self.words / 'log').read_text()[-2000:]}")
            time.sleep(0.005)
        self._signal(signal.SIGSTOP)
        return max(float(path.read_text()) for path in done)

    def _family(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _signal(self, which: int) -> None:
        """To the ranks alone: their launcher goes on watching them."""
        for child in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "benchmarks.rank" in child.cmdline():
                    child.send_signal(which)

    def end(self) -> None:
        """Let the ranks leave; whoever is still there after that is killed."""
        self._signal(signal.SIGCONT)
        family = self._family()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=20)
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self.process.kill()
        self.log.close()


def compare(controller: str, names: list[str], args: argparse.Namespace, folder: Path) -> list[dict]:
    """Seconds per step, a row for each round and contender."""
    jobs = [Job(name, args.ranks, controller, folder, args) for name in names]
    times = []
    try:
        for job in jobs:
            job.block(0)
        for number in tqdm(range(1, args.rounds + 1), desc=controller, unit="round"):
            turn = number % len(jobs)
            for job in jobs[turn:] + jobs[:turn]:
                seconds = job.block(number)
                times.append({"controller": controller, "contender": job.name, "round": number, "seconds": seconds})
    finally:
        for job in jobs:
            job.end()
    return times


def show(controller: str, table: pd.DataFrame) -> None:
    """Print a table: median step time, and the ratio of our time to theirs, median and quartiles over rounds."""
    rows = table[table["controller"] == controller]
    print(f"\n{controller}: median over {rows['rounds'].max()} rounds")
    print(f"{'':16}{'ms/step':>9}{'ours/it':>9}  quartiles")
    for row in rows.itertuples():
        spread = f"{row.lower_quartile:.3f} - {row.upper_quartile:.3f}"
        print(f"{row.contender:16}{row.ms:9.1f}{row.ratio:9.3f}  {spread}   {CONTENDERS[row.contender].__doc__}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="gpt-tiny", help="configuration to start from (default: %(default)s)")
    parser.add_argument("--data", default="data/embedded", help="prepared data (default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--controllers", nargs="+", default=["mpi", "gloo"], choices=["mpi", "gloo"])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=15, help="turns of every contender (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="steps in a turn (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for the times, ratios and figure (default: runs/bench-TIME)")
    args, args.settings = parser.parse_known_args()
    out = args.out or record.default_folder()
    names = list(dict.fromkeys(["ours", *args.contenders]))
    settings = {"config": args.config, **SETTINGS, "also": args.settings}
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for controller in args.controllers:
            times += compare(controller, names, args, Path(folder))
            table = pd.DataFrame(times)
            record.write(out, table, settings, args.ranks)
            show(controller, record.ratios(table))
    print(f"\nThe times, their ratios and a figure are in {out}.")


if __name__ == "__main__":
    main()
