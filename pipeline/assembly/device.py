"""The device, the dtype and the threads that this machine computes with."""

from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")


def fast_device() -> torch.device:
    """The GPU that torch sees, or the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_dtype() -> torch.dtype:
    """bfloat16 where the device multiplies it natively, float32 elsewhere."""
    if fast_device().type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def keep_precision() -> None:
    """Keep a GPU from rounding more than the dtype does, and from choosing kernels by the clock.

    Without this, convolutions in float32 are TensorFloat-32, sums in bfloat16 may be rounded in between, and
    bits may change from start to start.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cudnn.benchmark = False


def set_threads(num_threads: int | None) -> None:
    """Set how many threads the kernels called by this thread use; None leaves the number to torch."""
    if num_threads is not None:
        # torch initialises the number for a thread when the thread first needs it, with what any thread set
        # last. Reading it does so now; later it would replace the number set here by another stage's.
        torch.get_num_threads()
        torch.set_num_threads(num_threads)


def free_bytes(device: torch.device) -> int | None:
    """Memory that may still be taken on `device`: a GPU's, or the machine's; None where it is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not MEMINFO.exists():
        return None
    fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None
