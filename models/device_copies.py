"""Copies from the host to a device that the host does not wait for."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`tensor` on `device`, in `dtype` if one is given.

    From the host to a GPU it goes through pinned memory: the copy is queued behind the GPU's other work, and
    the host goes on at once. From pageable memory the host would wait for all that the GPU has to do.
    """
    if tensor.device.type != "cpu":
        return tensor.to(device, dtype or tensor.dtype)
    if dtype is not None:
        tensor = tensor.to(dtype)  # on the host: a copy that also converts needs a second, pageable buffer
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def indices(values: list[int], device: torch.device) -> Tensor:
    """Whole numbers of the host as a tensor (len(values),) of int64 on `device`."""
    return to_device(torch.tensor(values, dtype=torch.int64), device)
