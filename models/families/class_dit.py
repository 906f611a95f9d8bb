"""The class-conditional DiT family: a prompt is an ImageNet class."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.models.checkpoints.read_options import ReadOptions
from safelight.models.families.published import VAE_4
from safelight.models.families.spec import (
    Configs,
    Family,
    NetworkSpec,
    PartConfig,
    PublishedCheckpoint,
    PublishedPart,
    TextConditioning,
    count_image_tokens,
    patch_flops,
)
from safelight.models.networks.config import TIME_FREQUENCIES, ClassDiTConfig
from safelight.models.text.label import Labels, LabelTower

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from safelight.models.text.reading import TextTower

# In diffusers' files every block has embedders of its own, all equal; the paper counts them once.
COPIED_EMBEDDERS = re.compile(r"transformer_blocks\.[1-9]\d*\.norm1\.emb\.")


class ClassDiTSpec(NetworkSpec[ClassDiTConfig]):
    """diffusers' `DiTTransformer2DModel`: self-attention, and adaLN-Zero on time and class."""

    class_name = "DiTTransformer2DModel"
    config_class = ClassDiTConfig
    norm_type = "ada_norm_zero"
    default_sample_size = 32
    title = "a class-conditional DiT"
    packs_rows = False

    def read_config(self, config: PartConfig) -> ClassDiTConfig:
        return ClassDiTConfig.from_diffusers(config)

    def build(self, config: ClassDiTConfig) -> nn.Module:
        from safelight.models.networks.class_dit import ClassDiT

        return ClassDiT(config)

    def example_text(
        self, config: ClassDiTConfig, num_states: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """No states, and class 0; `num_states` is not used."""
        import torch

        return torch.zeros(0, 0), torch.zeros(0, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)

    def text_bytes(self, config: ClassDiTConfig, num_states: int) -> int:
        return 8  # the class, an int64

    def is_learned(self, tensor: str) -> bool:
        return not COPIED_EMBEDDERS.match(tensor)

    def forward_flops(self, config: ClassDiTConfig, height: int, width: int, text_tokens: int) -> int:
        """Operations of one row in one tick: a block is 24Nd^2 + 4N^2d. There is no text."""
        d, n = config.width, count_image_tokens(config, height, width)
        blocks = config.num_layers * (24 * n * d * d + 4 * n * n * d)
        return blocks + patch_flops(config, d, config.out_channels, n)

    def text_flops(self, config: ClassDiTConfig, text_tokens: int) -> int:
        """Zero: a class is prepared together with the times (`row_flops`)."""
        return 0

    def row_flops(self, config: ClassDiTConfig, text_tokens: int, num_times: int) -> int:
        """Operations of every adaLN at every time; looking a class up is free."""
        return num_times * 2 * (6 * config.num_layers + 2) * config.width**2

    def times_flops(self, config: ClassDiTConfig, num_times: int) -> int:
        """Operations of a time embedding for each block."""
        return num_times * config.num_layers * 2 * (TIME_FREQUENCIES * config.width + config.width**2)


class ClassConditioning(TextConditioning):
    """No encoder: a prompt is a class, by name or number."""

    checked_file = "model_index.json"

    @property
    def description(self) -> str:
        return "an ImageNet class, by name or number"

    def load_tower(
        self, folder: Path, device: torch.device, dtype: torch.dtype, options: ReadOptions
    ) -> TextTower:
        return LabelTower(folder)

    def check_fit(self, folder: Path) -> None:
        """Nothing to check: the embeddings of the classes are the transformer's own."""

    def check(self, folder: Path) -> None:
        Labels(folder)

    def read_labels(self, folder: Path) -> Labels:
        return Labels(folder)

    def num_states(self, configs: Configs) -> int:
        return 0

    def flops(self, configs: Configs) -> int:
        return 0


DIT_XL: PartConfig = {
    "_class_name": "DiTTransformer2DModel", "num_attention_heads": 16, "attention_head_dim": 72,
    "in_channels": 4, "out_channels": 8, "num_layers": 28, "sample_size": 64, "patch_size": 2,
    "num_embeds_ada_norm": 1000,
}  # fmt: skip

FAMILIES = (
    Family(
        name="dit",
        pipeline="DiTPipeline",
        variant="",
        matches=lambda folder: True,
        network=ClassDiTSpec(),
        conditioning=ClassConditioning(),
        num_steps=25,
        guidance_scale=4.0,
        solver="dpmpp_2m",
        schedule="noise prediction, linear betas",
        sides=(256, 512),
        has_buckets=False,
        licence="CC-BY-NC-4.0",
        origin=("facebook/DiT-XL-2-256", "facebook/DiT-XL-2-512"),
        published=PublishedCheckpoint(
            "dit", {"transformer": PublishedPart("DiT-XL/2", DIT_XL), "vae": VAE_4}
        ),
    ),
)
