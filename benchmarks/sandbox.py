"""A place where anyone may make interfaces, mounts and processes that all end with the program: namespaces of its own.

However the program ends, by SIGKILL too, the kernel removes what is in them.
"""

import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence

from hvd_llm.errors import UserError

# Processes end with their first one (--pid), interfaces and mounts with the last process (--net, --mount). --user is
# what lets anyone make the others.
_UNSHARE = shlex.split("unshare --user --map-root-user --net --mount --uts --pid --fork --kill-child --mount-proc")
_SCRATCH = "/dev/shm"
_PARENT = "HVD_LLM_SANDBOX_PARENT"  # number of the descriptor that closes when the outer process is gone
_TOOLS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux", "nsenter": "util-linux", "hostname": "hostname"}
_PROBE = (
    f"mount -t tmpfs tmpfs {_SCRATCH} && ip link add br0 type bridge && ip link set lo up && "
    "tc qdisc add dev lo root tbf rate 1mbit burst 12000 latency 50ms"
)


def obstacle() -> str | None:
    """Why there can be no networks of one's own here, in a sentence; None if there can."""
    path = _path()
    absent = [name for name in _TOOLS if shutil.which(name, path=path) is None]
    if absent:
        return f"{' and '.join(absent)} not found; install {' and '.join(sorted({_TOOLS[name] for name in absent}))}"
    command = [*_UNSHARE, "sh", "-c", _PROBE]
    probe = subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    if probe.returncode:
        said = (probe.stderr.strip().splitlines() or ["no reason given"])[-1]
        return f"this kernel or container does not let you make networks of your own with limited rates ({said})"
    return None


def enter() -> None:
    """Run this program again, from its start, in a sandbox, and exit as it does. Returns only in there.

    Temporary files are kept in memory from then on.

    Raises:
        UserError: it cannot be done here.
    """
    if _PARENT in os.environ:
        parent = int(os.environ.pop(_PARENT))
        os.set_inheritable(parent, False)
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        run(f"mount -t tmpfs tmpfs {_SCRATCH}")
        os.environ["TMPDIR"] = _SCRATCH
        return
    if reason := obstacle():
        raise UserError(reason)
    ours, theirs = os.pipe()
    command = [*_UNSHARE, sys.executable, *sys.orig_argv[1:]]
    process = subprocess.Popen(command, env=os.environ | {_PARENT: str(ours), "PATH": _path()}, pass_fds=[ours])
    os.close(ours)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        code = 130
    os.close(theirs)
    sys.exit(code)


def _end_with(parent: int) -> None:
    """Leave, and with us all that we started, when the outer process does: `unshare` would ignore a SIGTERM."""
    os.read(parent, 1)
    os._exit(1)


def _path() -> str:
    """Where commands are: an ordinary user's PATH may lack those of iproute2."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def run(command: str | Sequence[str]) -> str:
    """Run a command and return what it printed.

    Raises:
        UserError: it failed; with its own words.
    """
    words = shlex.split(command) if isinstance(command, str) else command
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{shlex.join(words)}: {done.stderr.strip()}")
    return done.stdout
