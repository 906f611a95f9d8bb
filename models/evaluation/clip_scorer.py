"""A CLIP that shares no weight with the model that it scores: how well an image shows what a text says.

Shapes: P images, H x W pixels, D channels of the CLIP's common space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from safelight.models.checkpoints.json_files import CLIP_CONFIG, read_json
from safelight.models.checkpoints.tensors import CLIP_WEIGHTS, load_into

SCORER = "scorer"  # the folder beside a checkpoint's weights
AT_ONCE = 128


@dataclass(frozen=True, slots=True)
class Scorer:
    """Both halves of the CLIP, which sees images at `side` x `side`."""

    clip: CustomTextCLIP
    tokenizer: SimpleTokenizer
    side: int

    @classmethod
    def load(cls, folder: Path) -> "Scorer":
        """The scorer beside a checkpoint's weights, float32; `CheckpointError` if there is none, or not all of it."""
        config = read_json(folder / SCORER / CLIP_CONFIG)["model_cfg"]
        clip = CustomTextCLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
        load_into(clip, folder / SCORER, "cpu", torch.float32, CLIP_WEIGHTS)
        return cls(
            clip,
            SimpleTokenizer(context_length=config["text_cfg"]["context_length"]),
            config["vision_cfg"]["image_size"],
        )

    @torch.inference_mode()
    def score(self, drawn: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """The cosine of each image (P, H, W, 3) uint8 with its own text, times 100: (P,).

        Hessel et al. 2021 (arXiv:2104.08718) without their factor of 2.5 and their cut at 0.
        """
        pixels = torch.from_numpy(drawn).permute(0, 3, 1, 2).split(AT_ONCE)
        seen = torch.cat([self.clip.encode_image(self._seen(part), normalize=True) for part in pixels])
        read = torch.cat(
            [self.clip.encode_text(ids, normalize=True) for ids in self.tokenizer(list(texts)).split(AT_ONCE)]
        )
        scores: np.ndarray = (100.0 * (seen * read).sum(dim=1)).numpy()
        return scores

    def _seen(self, pixels: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(pixels.float(), self.side) / 127.5 - 1.0
