"""Count the processor cores that this process may use."""

import math
import os
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")  # version 2, as in Docker, Kubernetes and Slurm
_OWN = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Return the number of cores that this process may use: by its affinity, and by the limits of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(cores, _allowed())))


def _allowed() -> float:
    """Return how many cores' worth of time the control groups of this process allow; infinity if there is no limit."""
    try:
        own = _GROUPS / _OWN.read_text().partition("0::/")[2].partition("\n")[0]
    except OSError:
        return math.inf
    return min(_share(group) for group in (own, *own.parents) if group.is_relative_to(_GROUPS))


def _share(group: Path) -> float:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # there is no such file at the root, and "max" is no limit
        return math.inf
