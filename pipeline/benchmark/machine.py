"""Which machine figures are from: they mean nothing without its processor and its best matrix product."""

import os
import platform
import resource
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from safelight.pipeline.assembly.device import fast_device, fast_dtype
from safelight.pipeline.calibration.peak import gemm_peak

CPUINFO = Path("/proc/cpuinfo")
# Instruction sets that decide how fast matrix products are, by the flag in /proc/cpuinfo, widest last.
INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 bf16",
    "amx_bf16": "AMX",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as it is named beside its figures.

    Attributes:
        processor: name of its processor.
        cores: those that this process may run on.
        instruction_sets: names out of `INSTRUCTION_SETS`, widest last.
        accelerator: name of its GPU; None without one.
        gemm_gflops: speed of the best matrix product by dtype, measured on the device that serves.
    """

    processor: str
    cores: int
    instruction_sets: tuple[str, ...]
    accelerator: str | None
    gemm_gflops: Mapping[str, float]

    @property
    def kind(self) -> str:
        """The GPU, or the widest instruction set: machines of one kind are compared with the same bars."""
        return self.accelerator or (self.instruction_sets or ("other",))[-1]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


# In place of a machine, where figures are simulated and the same on all of them.
SIMULATION = Machine("none: a simulation", 0, (), None, {})


def identify_machine(peak_flops: float | None = None, cpuinfo: str | None = None) -> Machine:
    """This machine; its best matrix product is measured, which takes seconds, unless `peak_flops` is given.

    `cpuinfo` is the text of /proc/cpuinfo, which is read if it is not given.
    """
    device, dtype = fast_device(), fast_dtype()
    if cpuinfo is None:
        cpuinfo = CPUINFO.read_text() if CPUINFO.exists() else ""
    peak = gemm_peak(device, dtype) if peak_flops is None else peak_flops
    return Machine(
        processor=_field(cpuinfo, "model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        instruction_sets=instruction_sets(_field(cpuinfo, "flags")),
        accelerator=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        gemm_gflops={str(dtype).removeprefix("torch."): round(peak / 1e9, 1)},
    )


def instruction_sets(flags: str) -> tuple[str, ...]:
    """The known instruction sets among the flags of a processor, widest last."""
    present = set(flags.split())
    return tuple(name for flag, name in INSTRUCTION_SETS.items() if flag in present)


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_bytes` count from now on, where that is possible."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that tensors took on a GPU, or this process on a processor."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _field(cpuinfo: str, name: str) -> str:
    """The first value of a field of /proc/cpuinfo; empty if there is none."""
    values = (line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith(name))
    return next(values, "")
