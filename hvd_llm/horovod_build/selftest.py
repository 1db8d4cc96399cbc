"""Ask Horovod how it was built and whether two ranks on this machine can add a tensor.

A Horovod built for another torch or MPI may crash or hang its process, so it is asked in processes of
their own, with a time limit; this module imports neither Horovod nor torch.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

CONTROLLERS = ("mpi", "gloo")
_PROBE = [sys.executable, "-m", "hvd_llm.comm.probe"]
# Set by a surrounding job: they would make a launcher leave this machine, or a rank believe it has a launcher.
_JOB = re.compile(r"(SLURM|PBS|LSB|LSF|PMI|PMIX|OMPI_COMM_WORLD|HOROVOD_(GLOO_|RANK|SIZE|LOCAL_|CROSS_|HOSTNAME))")


class ProbeError(Exception):
    """Horovod gave no answer; the message says why in a line or two."""


@dataclass(frozen=True)
class Built:
    """How the installed Horovod was compiled."""

    version: str
    torch: str
    """Version of torch it was compiled against."""
    controllers: list[str]
    operations: list[str]
    cuda: bool
    library: str
    """Path of the library that torch loads."""


@dataclass(frozen=True)
class Allreduce:
    """A two-rank allreduce that gave the right sum."""

    size: int
    controller: str
    device: str
    latency_us: float
    """Median time of 1 KiB."""
    bandwidth_gb_s: float
    """16 MiB divided by its median time, in 10^9 bytes per second."""
    shared_gb_s: float | None
    """The same where ranks of one host share memory; None if they cannot."""


def built(timeout_s: float = 60) -> Built:
    """Ask Horovod how it was compiled.

    Raises:
        ProbeError: it cannot be imported, crashes, or does not answer in time.
    """
    return Built(**_ask(_PROBE, local_environment(os.environ), timeout_s))


def allreduce(controller: str, timeout_s: float = 90) -> Allreduce:
    """Run a real allreduce on two ranks of this machine.

    Args:
        controller: "mpi" or "gloo".
        timeout_s: when to give up and end every process, in seconds.

    Raises:
        ProbeError: no launcher, a crash, a wrong sum, ranks that did not find each other, no answer in time.
    """
    environment = local_environment(os.environ)
    answer = Allreduce(**_ask([*launch(controller, environment), *_PROBE, "--allreduce"], environment, timeout_s))
    if (answer.size, answer.controller) != (2, controller):
        raise ProbeError(
            f"2 ranks were started under {controller}, but Horovod saw {answer.size} under {answer.controller}: "
            "it was built with another MPI than the mpirun that started it"
        )
    return answer


def local_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a launch that stays on this machine: this Python's commands first, no job's variables."""
    kept = {name: value for name, value in environ.items() if not _JOB.match(name)}
    return kept | {
        "PATH": os.pathsep.join([str(Path(sys.prefix) / "bin"), environ.get("PATH", os.defpath)]),
        "OMPI_MCA_plm": "isolated",  # else mpirun looks for ssh even if all ranks are here
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PYTHONUNBUFFERED": "1",
    }


def launch(controller: str, environment: Mapping[str, str]) -> list[str]:
    """The words that start two ranks of what follows them.

    Raises:
        ProbeError: there is no mpirun.
    """
    if controller == "mpi" and (open_mpi_version(environment) or (0,))[0] >= 5:
        return ["mpirun", "-np", "2", "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]  # horovodrun cannot
    return [sys.executable, "-m", "horovod.runner.launch", f"--{controller}", "-np", "2"]


def open_mpi_version(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """Version of the Open MPI that `mpirun` belongs to; None if it is another MPI.

    Raises:
        ProbeError: there is no mpirun, or it does not run.
    """
    found = re.search(r"Open MPI\)? v?(\d+)\.(\d+)\.(\d+)", mpirun_version(environment))
    return tuple(int(part) for part in found.groups()) if found else None


def mpirun_version(environment: Mapping[str, str]) -> str:
    """First line of `mpirun --version`.

    Raises:
        ProbeError: there is no mpirun, or it does not run.
    """
    mpirun = shutil.which("mpirun", path=environment.get("PATH"))
    if mpirun is None:
        raise ProbeError("mpirun is not on PATH")
    command = [mpirun, "--version"]
    try:
        done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        raise ProbeError(f"{mpirun} --version gave no answer in 30 s") from None
    if done.returncode or not done.stdout.strip():
        raise ProbeError(f"{mpirun} --version failed: {reason(done.stdout + done.stderr)}")
    return done.stdout.strip().splitlines()[0]


def _ask(command: list[str], environment: dict[str, str], timeout_s: float) -> dict:
    """Run a probe and return what it wrote."""
    with tempfile.TemporaryDirectory(prefix="hvd-llm-probe-") as folder:
        out = Path(folder) / "answer.json"
        with open(Path(folder) / "log", "w+", encoding="utf-8", errors="replace") as log:
            process = subprocess.Popen(
                [*command, "--out", str(out)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise ProbeError(f"no answer in {timeout_s:g} s") from None
            finally:
                _end(process)
            log.seek(0)
            if status or not out.exists():
                raise ProbeError(reason(log.read()) or f"it ended with status {status} and said nothing")
        return json.loads(out.read_text(encoding="utf-8"))


def _end(process: subprocess.Popen) -> None:
    """End a launcher and everything below it: ranks are in sessions of their own and outlive its group."""
    if process.poll() is not None:
        return
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=3)
    for member in alive:
        member.kill()
    psutil.wait_procs(alive, timeout=3)


def reason(output: str) -> str:
    """The lines of a launcher's output that say what went wrong, without the ranks' prefixes."""
    lines = [re.sub(r"^\[\d+(,\d+)?\]<std\w+>:\s?", "", line).strip() for line in output.splitlines()]
    lines = [line for line in lines if line.strip("-")]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return errors[0] if errors else " ".join(lines[-4:])
