"""The CLIP scorer against open_clip's own image and text towers, on random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.checkpoints.writer import write_clip
from safelight.models.evaluation.clip_scorer import SCORER, Scorer

VISION = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
TEXT = {"context_length": 15, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


@pytest.fixture(scope="module")
def clip() -> CustomTextCLIP:
    torch.manual_seed(0)
    return CustomTextCLIP(16, CLIPVisionCfg(**VISION), CLIPTextCfg(**TEXT)).eval()


def test_a_score_is_the_cosine_of_image_and_text(clip: CustomTextCLIP, tmp_path: Path) -> None:
    write_clip(tmp_path / SCORER, 16, VISION, TEXT, clip.state_dict())
    scorer = Scorer.load(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (130, 64, 64, 3), dtype=np.uint8)
    texts = [f"image {i}" for i in range(130)]
    pooled = F.avg_pool2d(torch.from_numpy(images).permute(0, 3, 1, 2).float(), 2) / 127.5 - 1.0
    with torch.inference_mode():
        expected = 100.0 * F.cosine_similarity(
            clip.encode_image(pooled), clip.encode_text(scorer.tokenizer(texts))
        )
    np.testing.assert_allclose(scorer.score(images, texts), expected.numpy(), atol=1e-3)


def test_an_incomplete_scorer_is_refused(clip: CustomTextCLIP, tmp_path: Path) -> None:
    state = clip.state_dict()
    del state["visual.ln_post.weight"]
    write_clip(tmp_path / SCORER, 16, VISION, TEXT, state)
    with pytest.raises(CheckpointError, match=r"visual\.ln_post\.weight"):
        Scorer.load(tmp_path)
