"""Processor time of the service's processes and of the load test itself, by what they do.

It tells how much of the machine a denoiser can have: on one machine all of them share its cores.
"""

import os
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

CLIENT, RAY = "load test", "Ray"
DENOISERS = {"Denoiser", "Colocated"}  # names of the deployments that denoise: split, and colocated


@dataclass(frozen=True, slots=True)
class CoreSeconds:
    """What the processes used while some images were drawn."""

    by_name: Mapping[str, float]  # in core-seconds: each deployment, Ray's own processes, the load test
    cores: int

    @property
    def others(self) -> float:
        """Core-seconds of all but the denoiser."""
        return sum(seconds for name, seconds in self.by_name.items() if name not in DENOISERS)

    def as_text(self) -> str:
        parts = sorted(self.by_name.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts if seconds >= 0.05)


class CoreClock:
    """Adds up the processor time of a process, of all its children, and of this process."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._before = self._read()

    def read(self) -> CoreSeconds:
        """The core-seconds since this clock was made. Processes that have ended are not counted."""
        totals: defaultdict[str, float] = defaultdict(float)
        for key, (name, seconds) in self._read().items():
            totals[name] += seconds - self._before.get(key, (name, 0.0))[1]
        return CoreSeconds(dict(totals), os.cpu_count() or 1)

    def _read(self) -> dict[tuple[int, float], tuple[str, float]]:
        """Name and processor time of each living process, by its id and its start."""
        times = {}
        for process in (self._root, *self._root.children(recursive=True), psutil.Process()):
            try:
                name = CLIENT if process.pid == os.getpid() else name_of(process.cmdline())
                cpu = process.cpu_times()
                times[process.pid, process.create_time()] = (name, cpu.user + cpu.system)
            except psutil.NoSuchProcess:
                continue
        return times


def name_of(command: list[str]) -> str:
    """What a process of the service does: its deployment's name, or Ray."""
    match = re.search(r"ServeReplica:safelight:(\w+)", " ".join(command))
    return match[1] if match else RAY
