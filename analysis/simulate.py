"""`python -m analysis simulate`: how long a step would take on more ranks, another network, with another compressor."""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import figures, network_lines, prices, tables
from analysis.errors import AnalysisError
from analysis.measure import Measurement, measure_runs
from analysis.network_lines import Network
from analysis.prices import Bucket, Prices
from analysis.run_folder import find_runs
from analysis.step_timeline import Exchange, pass_s

HELP = "predict step times on more ranks, other networks, with other compressors"
DESCRIPTION = """
Replay a step of RUN as it would be with what was priced: each bucket's last gradient, its compressor's work and its
operations on one network, one after the other, while the backward pass goes on. Every rank has a host of its own and
the same batch as in RUN; each step waits for the slowest of them, whose own work is as uneven as it was in RUN.
"""
EPILOG = """
RUN is best one rank's, whose passes nothing holds up: hvd-llm train CONFIG --out runs/one
prices:  hvd-llm price CONFIG --out runs/prices
network: horovodrun -np 2 -H HOST,HOST hvd-llm bench --out runs/bench
example: python -m analysis simulate runs/one --prices runs/prices --network runs/bench --ranks 2 8 64 1024
         python -m analysis simulate runs/one --prices runs/prices --network runs/bench --rates 50 1000
"""
_MOST_RANKS = 2**20


@dataclass(frozen=True)
class Work:
    """What a rank does itself in a step, in seconds, on average.

    Attributes:
        passes: forward and backward, so often a step.
        pass_s: each of them.
        rest_s: all else but waiting for gradients.
        unevenness: own work of each rank and step over the mean, ascending.
        overlap: whether gradients are sent inside the backward pass.
    """

    passes: int
    pass_s: float
    rest_s: float
    unevenness: np.ndarray
    overlap: bool

    @property
    def own_s(self) -> float:
        return self.passes * self.pass_s + self.rest_s

    def slowest(self, ranks: int) -> float:
        """Own work of the slowest of so many ranks over the mean, on average: of as many draws, the largest."""
        share = np.arange(len(self.unevenness) + 1) / len(self.unevenness)
        return float((np.diff(share**ranks) * self.unevenness).sum())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="RUN", help="the run folder of a training run")
    add("--prices", type=Path, required=True, metavar="DIR", help="what hvd-llm price wrote")
    add("--network", type=Path, required=True, metavar="DIR", help="what hvd-llm bench wrote")
    add("--ranks", type=int, nargs="+", metavar="N", help="how many (default: those that were priced)")
    add("--rates", type=float, nargs="+", metavar="MBIT", help="of each host, 10^6 bits/s, instead of the measured one")
    add("--out", type=Path, metavar="DIR", help="folder for simulate.csv and simulate.png; may exist")


def run(arguments: argparse.Namespace) -> int:
    """Print what is predicted.

    Raises:
        AnalysisError: something cannot be read, or says nothing about what is asked.
    """
    for ranks in arguments.ranks or []:
        if not 2 <= ranks <= _MOST_RANKS:
            raise AnalysisError(f"--ranks has {ranks}; it must be from 2 to {_MOST_RANKS:,}")
    for rate in arguments.rates or []:
        if not 0 < rate < np.inf:
            raise AnalysisError(f"--rates has {rate:g}; it must be above 0")
    found = find_runs([arguments.folder])
    if len(found) > 1:
        raise AnalysisError(f"{arguments.folder} holds {len(found)} runs; give the folder of one")
    measured, _ = measure_runs(found)
    work, priced = work_of(measured[-1]), prices.read(arguments.prices)
    measured_network = network_lines.read(arguments.network)
    networks = {f"{rate:g} Mb/s": measured_network.limited(rate * 1e6 / 8) for rate in arguments.rates or []}
    table = predictions(
        work, priced, networks or {"measured": measured_network}, sorted(set(arguments.ranks or priced.ranks))
    )
    print(tables.simulate(table).to_string(index=False))
    if arguments.out:
        try:
            arguments.out.mkdir(parents=True, exist_ok=True)
            table.to_csv(arguments.out / "simulate.csv", index=False, lineterminator="\n")
            (arguments.out / "simulate.png").write_bytes(figures.draw(figures.simulated(table), "light", 4.2))
        except OSError as error:
            raise AnalysisError(f"cannot write to {arguments.out}: {error.strerror}") from None
        print(f"\nAll of it is in {arguments.out}")
    return 0


def work_of(one: Measurement) -> Work:
    """What the ranks of a launch did themselves.

    Raises:
        AnalysisError: the run exchanges gradients in a way that this does not know.
    """
    config = one.launch.run.about["config"]
    overlap, every = config.get("reduce", {}).get("overlap", "backward"), config.get("sync", {}).get("every", 1)
    if overlap not in ("backward", "none") or every != 1 or config.get("reduce", {}).get("delay", 0):
        raise AnalysisError(
            f"{one.launch.run.path}: a step is simulated with reduce.overlap backward or none, sync.every 1 and "
            f"reduce.delay 0, but they are {overlap}, {every} and {config.get('reduce', {}).get('delay', 0)}"
        )
    own = one.ranks[["step_s", "forward_s", "backward_s", "exposed_s"]].mean()
    share = -(-one.launch.run.global_batch // one.launch.size)
    passes = -(-share // int(config["train"].get("micro_batch", share)))
    seconds = own["forward_s"] + own["backward_s"]
    uneven = np.sort((one.own_s / one.own_s.mean()).ravel())
    return Work(passes, seconds / passes, own["step_s"] - own["exposed_s"] - seconds, uneven, overlap == "backward")


def step_s(work: Work, buckets: Sequence[Bucket], network: Network, ranks: int) -> float:
    """Seconds of a step of so many ranks."""
    exchanges = [
        Exchange(
            bucket.ready_s / bucket.pass_s * work.pass_s,
            bucket.kernel_s,
            tuple(network.seconds(kind, sent, ranks) for kind, sent in bucket.operations),
        )
        for bucket in buckets
    ]
    last = pass_s(sorted(exchanges, key=lambda exchange: exchange.ready_s), work.pass_s, work.overlap)
    waiting = work.own_s * (work.slowest(ranks) - 1)
    return (work.passes - 1) * work.pass_s + last + work.rest_s + waiting


def predictions(work: Work, priced: Prices, networks: dict[str, Network], ranks: Sequence[int]) -> pd.DataFrame:
    """A row for each network, number of ranks, compressor and size of buckets.

    `efficiency` is one rank's step, which exchanges nothing, over the predicted one: each rank has as many tokens.
    """
    rows = []
    for (name, network), count, (compressor, bucket_mb) in itertools.product(networks.items(), ranks, priced.choices):
        buckets = priced.buckets(compressor, bucket_mb, count)
        seconds = step_s(work, buckets, network, count)
        rows.append(
            {
                "network": name,
                "ranks": count,
                "compressor": compressor,
                "bucket_mb": bucket_mb,
                "step_s": seconds,
                "efficiency": work.own_s / seconds,
                "exchange_s": seconds - work.own_s,
                "sent_mb": sum(sent for bucket in buckets for _, sent in bucket.operations) / 1e6,
                "kernel_s": sum(bucket.kernel_s for bucket in buckets),
            }
        )
    table = pd.DataFrame(rows)
    best = table.groupby(["network", "ranks"])["step_s"].transform("min")
    return table.assign(best=table["step_s"] == best)
