"""How many cores this process may use."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # where a container sees the limits of its own control group


def num_cores(cgroup: Path = CGROUP) -> int:
    """The cores of this process's CPU affinity, or its container's quota, rounded up, if that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota(cgroup: Path = CGROUP) -> float | None:
    """The cores that the control group may use, by its files of version 2 or 1; None: no limit."""
    try:
        return _quota_of(*(cgroup / "cpu.max").read_text().split())
    except (OSError, TypeError, ValueError):
        pass  # not version 2
    try:
        quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return _quota_of(quota, period)
    except (OSError, ValueError):
        return None


def _quota_of(quota: str, period: str) -> float | None:
    """Cores from microseconds of all cores in each period; `max` or a negative number is no limit."""
    if quota == "max" or int(quota) < 0:
        return None
    return int(quota) / int(period)
