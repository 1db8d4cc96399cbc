"""How much of this machine a process may use: cores by affinity and by quota, memory. The standard library alone."""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def visible() -> int:
    """Cores of the machine."""
    return os.cpu_count() or 1


def allowed() -> int:
    """Cores this process may be scheduled on."""
    return len(os.sched_getaffinity(0))


def quota(root: Path = _CGROUP, group: str | None = None) -> float | None:
    """Cores' worth of time that a container or job grants, or None without a limit.

    Args:
        root: where cgroups are mounted.
        group: this process's cgroup below it, such as "/slurm/job_1"; read from the kernel if None.
    """
    limits = []
    for folder in _lineage(_own_group() if group is None else group):
        old = root / "cpu" / folder
        v1 = _numbers(old / "cpu.cfs_quota_us") + _numbers(old / "cpu.cfs_period_us")
        v2 = _numbers(root / folder / "cpu.max")
        limits += [part[0] / part[1] for part in (v2, v1) if len(part) == 2 and min(part) > 0]
    return min(limits, default=None)


def usable() -> int:
    """Cores that can really be kept busy: allowed, and paid for by the quota."""
    limit = quota()
    return allowed() if limit is None else max(1, min(allowed(), math.ceil(limit)))


def share(ranks: int) -> int:
    """Threads for each of several ranks on this machine, so that together they fill its usable cores."""
    return max(1, usable() // ranks)


def memory_bytes() -> int:
    """Memory that is free or can be freed, in bytes."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, value, *_ = line.split()
        if name == "MemAvailable:":
            return int(value) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _own_group() -> str:
    """This process's cgroup: version 2's, or that of version 1's cpu controller."""
    lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    groups = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    for controllers, path in groups.items():
        if "cpu" in controllers.split(","):
            return path
    return groups.get("", "/")


def _lineage(group: str) -> list[str]:
    """A cgroup and its ancestors, as paths relative to the mount: a limit on any of them binds."""
    path = Path(group.lstrip("/"))
    return [str(folder) for folder in (path, *path.parents)]


def _numbers(path: Path) -> list[float]:
    """The numbers of a cgroup file; "max" counts as none, as does a file that is not there."""
    try:
        return [float(word) for word in path.read_text(encoding="ascii").split() if word != "max"]
    except OSError:
        return []
