"""Where a run comes from: the code, the machines and the launch line, as run.json records them."""

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from hvd_llm import cores
from hvd_llm.comm import Comm


def launch(first_step: int, machines: list[dict[str, Any]], comm: Comm, threads: int) -> dict[str, Any]:
    """This start of the run, as one entry of `launches`.

    Args:
        machines: what `machine` says on every rank. Of unlike ones, every name and the smallest number is kept.
    """

    def all_of(key: str) -> str:
        return " and ".join(sorted({machine[key] for machine in machines}))

    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "first_step": first_step,
        "argv": sys.argv,
        "size": comm.size,
        "controller": comm.controller,
        "shares_memory": comm.shares_memory,
        "hosts": [machine["host"] for machine in machines],
        "cpu": all_of("cpu"),
        "cores": min(machine["cores"] for machine in machines),
        "threads": threads,
        "device": all_of("device"),
        "memory_bytes": min(machine["memory_bytes"] for machine in machines),
        "slurm": {name: value for name, value in os.environ.items() if name.startswith("SLURM_JOB")},
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name in ("HOROVOD_CYCLE_TIME", "HOROVOD_FUSION_THRESHOLD", "OMP_NUM_THREADS")
            or name.startswith(("OMPI_MCA_mpi", "OMPI_MCA_btl", "NCCL_"))
        },
    }


def machine(device: torch.device) -> dict[str, Any]:
    """The machine this rank runs on."""
    return {
        "host": socket.gethostname(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "cpu": _cpu(),
        "cores": cores.usable(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "memory_bytes": psutil.virtual_memory().total,
    }


def sharing(machines: list[dict[str, Any]], rank: int) -> int:
    """How many ranks may use this one's cores: all of its host, or itself alone where a launcher binds ranks."""
    places = [(machine["host"], machine["affinity"]) for machine in machines]
    return places.count(places[rank])


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("hvd_llm", "torch", "horovod", "transformers", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git() -> dict[str, Any] | None:
    """The commit of the code that runs, if it runs from a checkout; what else lies in there does not matter."""

    def ask(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "."))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
