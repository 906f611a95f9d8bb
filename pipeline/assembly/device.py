"""The device, the dtype and the threads that this machine computes with."""

import torch


def fast_device() -> torch.device:
    """The GPU that torch sees, or the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_dtype() -> torch.dtype:
    """bfloat16 where the device multiplies it natively, float32 elsewhere."""
    if fast_device().type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def set_threads(num_threads: int | None) -> None:
    """Set how many threads the kernels called by this thread use; None leaves the number to torch."""
    if num_threads is not None:
        # torch initialises the number for a thread when the thread first needs it, with what any thread set
        # last. Reading it does so now; later it would replace the number set here by another stage's.
        torch.get_num_threads()
        torch.set_num_threads(num_threads)
