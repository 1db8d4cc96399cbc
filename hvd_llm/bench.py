"""`hvd-llm bench`: what every operation among ranks takes, over the size of what it is about."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hvd_llm.config import Config
from hvd_llm.errors import UserError
from hvd_llm.start import start

if TYPE_CHECKING:
    import torch

    from hvd_llm.comm import Comm
    from hvd_llm.reduce.network import Line

SCHEMA = "hvd_llm.collectives/1"
_LARGEST_KIB = 2**20
_ENOUGH_S = 4.0  # an operation that took so long, in all its repeats together, is not repeated again


@dataclass(frozen=True)
class Row:
    """A line of collectives.csv: an operation on float32 elements of one size.

    Attributes:
        payload_bytes: of what each rank gives to be summed, of all ranks' parts gathered, of what a rank gives to all.
        sent_bytes: of one rank, as `pricing.sent_bytes` counts them.
        lower_quartile_s, median_s, upper_quartile_s: of the slowest rank's seconds, over `repeats`.
        bus_mb_per_s: 10^6 of the sent bytes per second.
    """

    operation: str
    payload_bytes: int
    sent_bytes: float
    repeats: int
    lower_quartile_s: float
    median_s: float
    upper_quartile_s: float
    bus_mb_per_s: float


def row(operation: str, payload_bytes: int, sent_bytes: float, seconds: Sequence[float]) -> Row:
    """Sum up `seconds`, of which the first met cold caches: it counts only if it is all there is."""
    counted = seconds[1:] or seconds
    lower, median, upper = map(float, np.quantile(counted, [0.25, 0.5, 0.75]))
    bus_mb_per_s = sent_bytes / median / 1e6
    return Row(operation, payload_bytes, sent_bytes, len(counted), lower, median, upper, bus_mb_per_s)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sizes = [4**power for power in range(8)]
    parser.add_argument("--out", default="", help="new folder (default: runs/bench-nRANKS-TIME)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=sizes, metavar="KIB", help="of messages, in KiB (default: 1 4 … 16384)"
    )
    parser.add_argument("--repeats", type=int, default=10, help="of every operation and size (default: %(default)s)")
    parser.add_argument(
        "--run.device", dest="device", default="auto", choices=("auto", "cpu", "cuda"), help="as of hvd-llm train"
    )
    parser.epilog = """\
examples:
  horovodrun -np 2 hvd-llm bench
  horovodrun -np 2 hvd-llm bench --sizes 1 1024 --out runs/network

Horovod looks for operations as in training: when there is one, or every 10 ms if it was not built by
hvd-llm install-horovod."""


def settings(args: argparse.Namespace) -> Config:
    """Raise UserError for what cannot be measured."""
    for size in args.sizes:
        if not 1 <= size <= _LARGEST_KIB:
            raise UserError(f"--sizes has {size}; a size is in KiB, from 1 to {_LARGEST_KIB}")
    if len(set(args.sizes)) < 2:
        raise UserError(f"--sizes has only {args.sizes[0]}; latency and bandwidth can be told from two sizes or more")
    if args.repeats < 1:
        raise UserError(f"--repeats is {args.repeats}; it must be 1 or more")
    return Config()


def run(args: argparse.Namespace) -> None:
    _, comm = start(lambda: settings(args))
    if comm.size == 1:
        raise UserError(
            "one rank has nothing to exchange: start several with: horovodrun -np 2 hvd-llm bench", shared=True
        )
    from hvd_llm import device, folders, provenance
    from hvd_llm.reduce.network import fit

    comm.require_same("--sizes or --repeats", [args.sizes, args.repeats])
    folder = Path(args.out or folders.default("bench", comm.size))
    with comm.together("find the device, make the folder"):
        where = device.choose(args.device, comm.local_rank)
        if comm.rank == 0:
            folders.make_empty(folder)
    machines = comm.gather_objects("machines", provenance.machine(where))
    threads = device.use_threads(0, provenance.sharing(machines, comm.rank))
    launch = provenance.launch(0, machines, comm, threads)
    curves = measure(comm, where, [size << 10 for size in sorted(set(args.sizes))], args.repeats)
    lines = {
        kind: fit([row.sent_bytes for row in rows], [row.median_s for row in rows]) for kind, rows in curves.items()
    }
    with comm.together("write the results"):
        if comm.rank == 0:
            record = {
                "schema": SCHEMA,
                "kind": "bench",
                "versions": provenance.versions(),
                "git": provenance.git(),
                "lines": {kind: asdict(line) for kind, line in lines.items()},
                "launches": [launch],
            }
            try:
                write(folder, curves)
                draw(folder / "collectives.png", curves, lines)
                folders.write_record(folder, record)
            except OSError as error:
                raise UserError(f"{folder} cannot be written: {error}") from None
            print(f"{comm.size} ranks on {comm.controller}, {where}; quartiles and a figure are in {folder}.\n")
            print(table(curves))
            said = ", ".join(f"{kind} {line}" for kind, line in lines.items())
            print(f"\nLatency and bandwidth, by the bytes that a rank sends: {said}.")
    comm.close()


def measure(comm: Comm, where: torch.device, sizes: Sequence[int], repeats: int) -> dict[str, list[Row]]:
    """Operation → a row for each of `sizes` (bytes, ascending); the same on all ranks. Collective."""
    from hvd_llm.metrics import Display
    from hvd_llm.reduce.network import duration, makes
    from hvd_llm.reduce.pricing import sent_bytes

    kinds = makes(comm, where)
    requests = {(kind, size): make(size // 4) for size in sizes for kind, make in kinds.items()}
    seconds: dict[tuple[str, int], list[float]] = {cell: [] for cell in requests}
    display = Display(0, len(requests) * (repeats + 1), "operation") if comm.rank == 0 else None
    for turn in range(repeats + 1):  # all in every turn, so that a slow moment of the machine is not one's alone
        for number, (cell, request) in enumerate(requests.items(), 1):
            kind, size = cell
            if sum(seconds[cell]) < _ENOUGH_S:
                seconds[cell].append(duration(comm, kind, request))
            if display:
                display.show(turn * len(requests) + number, f"{kind} of {_size(size)}")
    if display:
        display.close()
    return {
        kind: [
            row(kind, size, sent_bytes(requests[kind, size], comm.rank, comm.size), seconds[kind, size])
            for size in sizes
        ]
        for kind in kinds
    }


def write(folder: Path, curves: Mapping[str, Sequence[Row]]) -> None:
    """Write collectives.csv."""
    with open(folder / "collectives.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for rows in curves.values() for row in rows)


def table(curves: Mapping[str, Sequence[Row]]) -> str:
    """Median milliseconds and bus MB/s: a line for each size, two columns for each operation."""
    text = [f"{'':8}" + "".join(f"{kind:>22}" for kind in curves), "payload " + f"{'ms':>10}{'MB/s':>12}" * len(curves)]
    for rows in zip(*curves.values(), strict=True):
        cells = (f"{1e3 * row.median_s:10.2f}{row.bus_mb_per_s:12,.1f}" for row in rows)
        text.append(f"{_size(rows[0].payload_bytes):>8}" + "".join(cells))
    return "\n".join(text)


def draw(path: Path, curves: Mapping[str, Sequence[Row]], lines: Mapping[str, Line]) -> None:
    """Draw medians, quartiles and the lines fitted to them, as time and as bus bandwidth."""
    from matplotlib.figure import Figure  # slow to import, needed on rank 0 only

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, title, value in (
        (left, "ms, of the slowest rank", lambda sent, seconds: 1e3 * seconds),
        (right, "bus bandwidth, MB/s", lambda sent, seconds: sent / seconds / 1e6),
    ):
        for number, (kind, rows) in enumerate(curves.items()):
            payload, sent, _, lower, median, upper, _ = np.array([astuple(row)[1:] for row in rows]).T
            colour = f"C{number}"
            between = np.geomspace(payload[0], payload[-1], 100)
            sent_between = np.interp(between, payload, sent)
            fitted = lines[kind].latency_s + lines[kind].per_byte_s * sent_between
            axes.vlines(payload, value(sent, lower), value(sent, upper), color=colour)
            axes.plot(payload, value(sent, median), "o", ms=4, color=colour)
            axes.plot(between, value(sent_between, fitted), color=colour, lw=1, label=f"{kind}: {lines[kind]}")
        axes.set(xscale="log", yscale="log", xlabel="payload", ylabel=title)
        axes.set_xticks(payload, [_size(int(size)) for size in payload], rotation=30)
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
    left.legend(fontsize="small", title="fitted latency and bandwidth", title_fontsize="small")
    figure.savefig(path, dpi=120)


def _size(size: int) -> str:
    return f"{size >> 10} KiB" if size % 2**20 else f"{size >> 20} MiB"
