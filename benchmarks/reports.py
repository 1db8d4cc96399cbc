"""What reports of large runs cost: `python -m benchmarks.reports`.

Makes up the traces of a run of many ranks, and a timeline as Horovod writes it, and measures how long `python -m
analysis report` takes with them, and how much memory.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import trange

from benchmarks import record
from hvd_llm import config
from hvd_llm.trace import FIELDS, KINDS, Trace

# What a rank does in a step, in ms from its start: kind, begin, end, index, amount.
SPANS = [
    ("input", 0, 2, 0, 0),
    ("forward", 2, 60, 0, 0),
    ("backward", 60, 180, 0, 0),
    ("bucket_queue", 100, 101, 0, 0),
    ("bucket_exchange", 101, 140, 0, 4_000_000),
    ("bucket_sent", 101, 140, 0, 7_992_000),
    ("bucket_queue", 179, 180, 1, 0),
    ("bucket_exchange", 180, 200, 1, 4_000_000),
    ("bucket_sent", 180, 200, 1, 7_992_000),
    ("exposed", 180, 200, 0, 0),
    ("optimizer", 200, 206, 0, 0),
    ("step", 0, 207, 0, 4096),
]


def write_run(folder: Path, ranks: int, steps: int) -> int:
    """A run folder; returns the number of spans."""
    trained = config.Config()
    tree = config.to_dict(trained) | {"train": config.to_dict(trained)["train"] | {"global_batch": 8 * ranks}}
    launch = {"size": ranks, "hosts": [f"node-{rank // 8}" for rank in range(ranks)], "controller": "mpi"}
    launch |= {
        "started": "2026-01-31T12:00:00+00:00",
        "first_step": 0,
        "argv": [],
        "shares_memory": False,
        "cpu": "made up",
    }
    launch |= {"cores": 8, "threads": 1, "device": "cpu", "memory_bytes": 2**33, "slurm": {}, "environment": {}}
    about = {
        "schema": "hvd_llm.run/1",
        "kind": "train",
        "config": tree,
        "versions": {},
        "git": None,
        "launches": [launch],
    }
    about |= {
        "model": {"parameters": 0, "flops_per_token": 0},
        "data": {"fingerprint": "", "path": "", "vocabulary": 0},
    }
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(about))
    random = np.random.default_rng(0)
    for rank in trange(ranks, desc="writing traces", unit="rank"):
        path = folder / "trace/launch-0" / f"rank-{rank:05d}.trace"
        Trace(path, rank, ranks).close()
        with open(path, "ab") as file:
            file.write(_records(steps, 1 + 0.02 * random.standard_normal(steps)).tobytes())
    return ranks * steps * len(SPANS)


def _records(steps: int, factor: np.ndarray) -> np.ndarray:
    """A rank's records; each step takes `factor` times as long as SPANS say."""
    began = np.concatenate([[0], np.cumsum(factor[:-1])]) * 207e6 + 1e9
    records = np.zeros((steps, len(SPANS)), [tuple(field) for field in FIELDS])
    for at, (kind, start, end, index, amount) in enumerate(SPANS):
        records[:, at]["start_ns"] = began + start * 1e6 * factor
        records[:, at]["end_ns"] = began + end * 1e6 * factor
        records[:, at]["index"], records[:, at]["amount"], records[:, at]["kind"] = index, amount, KINDS[kind][0]
        records[:, at]["step"] = np.arange(steps)
    return records


def write_timeline(path: Path, megabytes: float, tensors: int = 12) -> None:
    """A timeline of steps that sum `tensors`, fused in fours."""
    names = [
        {"name": "process_name", "ph": "M", "pid": pid, "args": {"name": f"bucket.{pid}"}}
        for pid in range(1, tensors + 1)
    ]
    with open(path, "w") as file:
        file.write("[\n" + "".join(json.dumps(event) + ",\n" for event in names))
        step = 0
        while file.tell() < megabytes * 1e6:
            file.write("," * bool(step) + ",".join(map(json.dumps, _events(step * 200_000, tensors))))
            step += 1
        file.write("]")


def _events(now: int, tensors: int) -> list[dict]:
    events = [{"ph": "B", "name": "NEGOTIATE_ALLREDUCE", "ts": now + pid, "pid": pid} for pid in range(1, tensors + 1)]
    events += [{"ph": "E", "ts": now + 9_000 + pid, "pid": pid} for pid in range(1, tensors + 1)]
    for first in range(1, tensors + 1, 4):
        now += 10_000
        batch = range(first, first + 4)
        events += [{"ph": "B", "name": "ALLREDUCE", "ts": now, "pid": pid} for pid in batch]
        for name, took in (
            ("MEMCPY_IN_FUSION_BUFFER", 100),
            ("MPI_ALLREDUCE", 8_000),
            ("MEMCPY_OUT_FUSION_BUFFER", 100),
        ):
            events += [{"ph": "B", "name": name, "ts": now, "pid": pid} for pid in batch]
            now += took
            events += [{"ph": "E", "ts": now, "pid": pid} for pid in batch]
        args = {"dtype": "float32", "shape": "[1000000]"}
        events += [{"ph": "E", "ts": now, "pid": pid, "args": args} for pid in batch]
    return events


def measure(what: str, folder: Path) -> dict:
    """Report on a run folder; seconds, and GiB that the report needed at most."""
    command = [sys.executable, "-m", "analysis", "report", str(folder), "--out", str(folder / "report")]
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen(command)
    while process.poll() is None:
        peak = _peak_kib(process.pid) or peak  # what wait4 says counts this process too, from before the other's exec
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"the report of {what} failed")
    return {"report": what, "seconds": time.perf_counter() - began, "gib": peak / 2**20}


def _peak_kib(pid: int) -> int:
    """What a process has needed of memory at most; 0 when it is over."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--timeline-mb", type=float, default=1000, help="of Horovod's timeline (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=None, help="folder for the table (default: runs/bench-TIME)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        many, long = Path(scratch, "many"), Path(scratch, "long")
        spans = write_run(many, args.ranks, args.steps)
        write_run(long, 2, 40)
        write_timeline(long / "trace/launch-0/horovod_timeline.json", args.timeline_mb)
        found = [
            measure(f"{args.ranks} ranks, {args.steps} steps, {spans / 1e6:.1f} M spans", many),
            measure(f"a timeline of {args.timeline_mb:g} MB", long),
        ]
    table = pd.DataFrame(found)
    about = {
        "kind": "reports",
        "ranks": 1,
        "settings": {key: value for key, value in vars(args).items() if key != "out"},
    }
    out = args.out or record.default_folder()
    record.write(out, table, table, about)
    print(table.to_string(index=False, float_format="{:.2f}".format))
    print(f"\nThe table is in {out}.")


if __name__ == "__main__":
    main()
