"""Noise as a pure function of (seed, image, draw), on the CPU: the same after a retry and in any batch."""

import hashlib
import struct

import torch
from torch import Tensor

START = 0  # draw 0 is the initial latent; tick k uses draw k + 1


def draw(seed: int, image_index: int, index: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal float32 noise of `shape`; the same three integers always give the same bits."""
    digest = hashlib.blake2b(struct.pack("<QQQ", seed, image_index, index), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(shape, generator=generator)
