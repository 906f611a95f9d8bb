"""Score how well an image shows its text, with a CLIP that shares no weights with the model under test.

Shapes: P images, H x W pixels, D channels of the CLIP's common space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.models.text.open_clip_classes import CustomTextCLIP, SimpleTokenizer
from safelight.models.text.open_clip_folder import load_clip, read_model_config

SCORER = "scorer"  # the folder beside a checkpoint's weights
BATCH_SIZE = 128


@dataclass(frozen=True, slots=True)
class Scorer:
    """A CLIP's two towers with its tokenizer; the image tower sees `side` x `side` pixels."""

    clip: CustomTextCLIP
    tokenizer: SimpleTokenizer
    side: int

    @classmethod
    def load(cls, folder: Path) -> "Scorer":
        """Load the scorer beside a checkpoint's weights, in float32.

        Raises:
            CheckpointError: it is missing or incomplete.
        """
        config = read_model_config(folder / SCORER)
        return cls(
            load_clip(folder / SCORER),
            SimpleTokenizer(context_length=config["text_cfg"]["context_length"]),
            config["vision_cfg"]["image_size"],
        )

    @torch.inference_mode()
    def score(self, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Return the cosine of each image (P, H, W, 3) uint8 with its text, times 100: (P,).

        Hessel et al. 2021 (arXiv:2104.08718) without their factor of 2.5 and their cut at 0.
        """
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        image_features = torch.cat(
            [
                self.clip.encode_image(self._preprocess(batch), normalize=True)
                for batch in torch.split(pixels, BATCH_SIZE)
            ]
        )
        ids = self.tokenizer(list(texts))
        text_features = torch.cat(
            [self.clip.encode_text(batch, normalize=True) for batch in torch.split(ids, BATCH_SIZE)]
        )
        scores: np.ndarray = (100.0 * (image_features * text_features).sum(dim=1)).numpy()
        return scores

    def _preprocess(self, pixels: Tensor) -> Tensor:
        """Pixels (P, 3, H, W) uint8 to (P, 3, side, side) in [-1, 1]."""
        return F.adaptive_avg_pool2d(pixels.float(), self.side) / 127.5 - 1.0
