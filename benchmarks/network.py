"""Step times between hosts with networks of several speeds: `python -m benchmarks.network`.

The hosts are those of `benchmarks.hosts`, on this machine. Every contender is a job over all of them. In every round
and at every rate, each does about the same number of seconds of steps while the others are stopped; so the bytes that
the hosts send meanwhile are its own. What is compared are ratios within a round, to the fastest kind of torch DDP;
without one, to the first contender that completed.
"""

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
from tqdm import tqdm

from analysis.errors import AnalysisError
from analysis.steps import rank_steps
from analysis.trace_file import open_trace
from benchmarks import record, sandbox
from benchmarks.contenders import find, known, trace_path
from benchmarks.hosts import launch
from benchmarks.jobs import Job, Jobs, Ranks, options
from benchmarks.netns import UNLIMITED, Hosts, bits_per_second
from benchmarks.side_by_side import SETTINGS
from hvd_llm import config as configuration
from hvd_llm.config import Config
from hvd_llm.errors import UserError
from hvd_llm.reduce.pricing import FRAMING
from hvd_llm.train_command import overrides

MODELS = {  # GPT-2 of so many parameters
    "5m": {"model.layers": 5, "model.hidden": 256, "model.heads": 4},
    "30m": {"model.layers": 9, "model.hidden": 512, "model.heads": 8},
}
OURS = ["ours", "ours:bf16", "ours:int8", "ours:int4", "ours:onebit", "ours:topk", "ours:powersgd"]
PEERS = ["ddp", "ddp_lean", "ddp_fp16", "ddp_bf16", "ddp_powersgd", "stock_horovod", "stock_horovod_fp16"]


class Measurement:
    """What is known so far, over all controllers.

    Attributes:
        times: a row for each controller, rate, contender and round.
        incomplete: controller → contender → what it said last.
    """

    def __init__(self, args: argparse.Namespace, out: Path):
        self.times: list[dict] = []
        self.incomplete: dict[str, dict[str, str]] = {}
        self._args, self._out = args, out

    def over(self, controller: str, hosts: Hosts, folder: Path) -> None:
        """Measure with one controller; what there is is written after every round."""
        args = self._args
        with Jobs() as jobs, tqdm(desc=controller, unit="turn") as progress:
            self.incomplete[controller] = jobs.incomplete
            for name in args.contenders:
                progress.set_postfix_str(f"{name} starts")
                job = _start(name, controller, hosts, args, folder)
                jobs.add(job)
                jobs.block(job, 1, args.warm_up)
            seconds: dict[tuple[str, str], float] = {}  # a step's, last time
            for number in range(args.rounds + 1):  # round 0 only tells how many steps fit into a turn
                left = (args.rounds + 1 - number) * len(args.rates) * len(jobs.in_turn(number))
                progress.total = progress.n + left  # jobs may have failed
                for rate in args.rates:
                    hosts.limit(rate)
                    for job in jobs.in_turn(number):
                        progress.set_postfix_str(f"{rate} {job.name}")
                        row = self._turn(jobs, job, hosts, seconds.get((job.name, rate)))
                        progress.update()
                        if row:
                            seconds[job.name, rate] = row["seconds"]
                            if number:
                                self.times.append({"controller": controller, "rate": rate, "round": number, **row})
                if self.times:
                    self.write()

    def _turn(self, jobs: Jobs, job: Job, hosts: Hosts, seconds: float | None) -> dict | None:
        """One contender's turn, of as many steps as its last ones, of `seconds` each, let hope; its row of `times`."""
        wanted = 1 if seconds is None else min(self._args.steps, max(2, round(self._args.turn / seconds) - 1))
        every = _config(job.name, self._args).sync.every
        # The first step finds TCP as slow as at its start, and cold caches: it is not timed, but where a turn must be
        # of whole rounds, whose exchange is one step's.
        steps, warm_up = (wanted, 1) if every == 1 else (-(-wanted // every) * every, 0)
        before, done = hosts.sent_bytes(), job.steps
        seconds = jobs.block(job, steps, warm_up)
        if seconds is None:
            return None
        sent = sum(hosts.sent_bytes()) - sum(before)
        bytes_per_host = {
            "sent_bytes": round(sent / (steps + warm_up) / len(before)),
            "priced_bytes": priced_bytes(trace_path(job.folder, 0), range(done, job.steps))
            if self._args.ranks_per_host == 1
            else math.nan,
        }
        return {"contender": job.name, "steps": steps, "seconds": seconds, **bytes_per_host}

    def write(self) -> None:
        args = self._args
        about = {
            "kind": "network",
            "ranks": args.hosts * args.ranks_per_host,
            "hosts": args.hosts,
            "rates": args.rates,
            "settings": {"config": args.config, "model": args.model, **_settings(args), "also": args.settings},
            "did_not_complete": self.incomplete,
        }
        table = self.ratios()
        record.write(self._out, pd.DataFrame(self.times), table, about)
        record.time_figure(table, self._out / "step_times.png")

    def ratios(self) -> pd.DataFrame:
        completed = {
            controller: [name for name in self._args.contenders if name not in incomplete]
            for controller, incomplete in self.incomplete.items()
        }
        return record.ratios_to_peer(pd.DataFrame(self.times), completed)


def priced_bytes(trace: Path, steps: range) -> float:
    """What a rank should have sent in each of some steps by the price of its requests; NaN if it is not traced.

    It is the same as what its host sends if it is alone there.
    """
    if not trace.exists():
        return math.nan
    measured = rank_steps(open_trace(trace))
    return float(np.round(measured.sent_bytes[np.isin(measured.step, steps)].mean() * FRAMING))


def _settings(args: argparse.Namespace) -> dict:
    ranks = args.hosts * args.ranks_per_host
    batch = {"data.path": args.data, "train.global_batch": SETTINGS["train.micro_batch"] * ranks}
    return SETTINGS | MODELS[args.model] | batch


def _start(name: str, controller: str, hosts: Hosts, args: argparse.Namespace, folder: Path) -> Job:
    def start(command: list[str], log: IO) -> Ranks:
        return launch(hosts, command, controller, args.ranks_per_host, output=log)

    words = folder / f"{controller}-{name}"
    words.mkdir()
    size = args.hosts * args.ranks_per_host
    return Job(name, size, words, start, args.config, options(_settings(args)) + args.settings)


def show(table: pd.DataFrame, incomplete: dict[str, dict[str, str]]) -> None:
    for (controller, rate), rows in table.groupby(["controller", "rate"], sort=False):
        print(f"\n{controller}, {rate}: medians over {rows['rounds'].max()} rounds")
        print(f"{'':32}{'ms/step':>9}{'MB sent':>9}{'priced':>9}{'ratio':>8}  quartiles; to {rows['over'].iloc[0]}")
        for row in rows.itertuples():
            spread = f"{row.lower_quartile:.3f} - {row.upper_quartile:.3f}"
            name = row.contender if len(row.contender) <= 32 else f"{row.contender}\n{'':32}"
            priced = "" if math.isnan(row.priced_bytes) else f"{row.priced_bytes / 1e6:.2f}"
            print(f"{name:32}{row.ms:9.1f}{row.sent_bytes / 1e6:9.2f}{priced:>9}{row.ratio:8.3f}  {spread}")
    for controller, names in incomplete.items():
        for name, why in names.items():
            print(f"\n{name} did not complete on {controller}: {why}")


def _config(name: str, args: argparse.Namespace) -> Config:
    """What a contender trains, but for its model and batch."""
    return configuration.load(args.config, overrides(args.settings) | find(name).changes)


def _rate(text: str) -> str:
    try:
        bits_per_second(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--hosts", type=int, default=4, help="default: %(default)s")
    add("--ranks-per-host", type=int, default=1, help="default: %(default)s")
    add(
        "--rates",
        nargs="+",
        type=_rate,
        default=["50mbit", "200mbit"],
        help="of each host, or unlimited (default: %(default)s)",
    )
    add("--controllers", nargs="+", default=["gloo"], choices=["gloo", "mpi"], help="default: %(default)s")
    add(
        "--contenders",
        nargs="+",
        type=known,
        default=[*OURS, *PEERS, "floor"],
        help="such as ours:int8 (default: %(default)s)",
    )
    add("--rounds", type=int, default=3, help="turns of every contender (default: %(default)s)")
    add("--turn", type=float, default=5, help="seconds of a turn, at least three steps (default: %(default)s)")
    add("--steps", type=int, default=20, help="most timed steps in a turn (default: %(default)s)")
    add("--warm-up", type=int, default=5, help="steps before all else (default: %(default)s)")
    add("--model", default="5m", choices=list(MODELS), help="GPT-2 of so many parameters (default: %(default)s)")
    add("--config", default="gpt-tiny", help="configuration to start from (default: %(default)s)")
    add("--data", default="data/embedded", help="prepared data (default: %(default)s)")
    add("--out", type=Path, help="folder for times, ratios and figure (default: runs/bench-TIME)")
    args, args.settings = parser.parse_known_args()
    args.contenders = list(dict.fromkeys(args.contenders))
    try:
        looks = [_config(name, args).reduce.automatic for name in args.contenders]
    except UserError as error:
        parser.error(str(error))
    if len(args.rates) > 1 and any(looks):
        parser.error("auto looks at the network when it starts: give one of --rates at a time")
    return args


def main() -> None:
    args = _arguments()
    try:
        sandbox.enter()
        out = args.out or record.default_folder()
        measurement = Measurement(args, out)
        with tempfile.TemporaryDirectory() as folder, Hosts(args.hosts) as hosts:
            for controller in args.controllers:
                # What `auto` finds out at its start must be true later. Else nobody waits for slow starts.
                hosts.limit(args.rates[0] if len(args.rates) == 1 else UNLIMITED)
                measurement.over(controller, hosts, Path(folder))
    except (UserError, AnalysisError) as error:
        print(f"benchmarks.network: {error}", file=sys.stderr)
        sys.exit(2)
    if not measurement.times:
        sys.exit("no contender completed a turn")
    show(measurement.ratios(), measurement.incomplete)
    print(f"\nThe times, their ratios and a figure are in {out}.")


if __name__ == "__main__":
    main()
