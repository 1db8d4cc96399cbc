"""Step times side by side: `python -m benchmarks.side_by_side`.

Every contender is a job of its own. The jobs take turns, a block of steps each, round after round, and all
but one are stopped (SIGSTOP) meanwhile, so that drifts of the machine hit everyone alike and nobody's
background threads cost another. What is compared are ratios within a round.
"""

import argparse
import contextlib
import json
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
from tqdm import tqdm

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


def compare(controller: str, names: list[str], args: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Seconds per step by contender, one entry a round."""
    jobs = [Job(name, args.ranks, controller, folder, args) for name in names]
    times: dict[str, list[float]] = {name: [] for name in names}
    try:
        for job in jobs:
            job.block(0)
        for number in tqdm(range(1, args.rounds + 1), desc=controller, unit="round"):
            turn = number % len(jobs)
            for job in jobs[turn:] + jobs[:turn]:
                times[job.name].append(job.block(number))
    finally:
        for job in jobs:
            job.end()
    return times


def report(controller: str, times: dict[str, list[float]]) -> str:
    """A table: median step time, and the ratio of our time to theirs, median and quartiles over rounds."""
    lines = [
        f"\n{controller}: median over {len(times['ours'])} rounds",
        f"{'':16}{'ms/step':>9}{'ours/it':>9}  quartiles",
    ]
    for name, seconds in times.items():
        ratios = sorted(mine / its for mine, its in zip(times["ours"], seconds, strict=True))
        low, _, high = statistics.quantiles(ratios, n=4)
        middle = statistics.median(ratios)
        lines.append(
            f"{name:16}{1e3 * statistics.median(seconds):9.1f}{middle:9.3f}  {low:.3f} - {high:.3f}   "
            f"{CONTENDERS[name].__doc__}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="gpt-tiny", help="configuration to start from (default: %(default)s)")
    parser.add_argument("--data", default="data/embedded", help="prepared data (default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--controllers", nargs="+", default=["mpi", "gloo"], choices=["mpi", "gloo"])
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=15, help="turns of every contender (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="steps in a turn (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write the times as JSON")
    args, args.settings = parser.parse_known_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for controller in args.controllers:
            results[controller] = compare(controller, args.contenders, args, Path(folder))
            print(report(controller, results[controller]))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"settings": SETTINGS, "seconds_per_step": results}, indent=1))


if __name__ == "__main__":
    main()
