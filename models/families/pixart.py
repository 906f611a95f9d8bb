"""The PixArt families: PixArt-alpha, PixArt-Sigma, and the embedded model's, with an open_clip tower."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.models.checkpoints.json_files import CLIP_CONFIG, read_json
from safelight.models.checkpoints.model_index import read_part_class
from safelight.models.checkpoints.options import checked
from safelight.models.checkpoints.read_options import ReadOptions
from safelight.models.families.encoders import open_clip_files, t5_files
from safelight.models.families.published import T5_XXL, VAE_4
from safelight.models.families.spec import (
    FLOAT32_BYTES,
    Configs,
    Family,
    NetworkSpec,
    Part,
    PartConfig,
    PublishedCheckpoint,
    PublishedPart,
    TextConditioning,
    count_image_tokens,
    patch_flops,
    read_transformer,
    require_text_width,
)
from safelight.models.networks.config import TIME_FREQUENCIES, DiTConfig
from safelight.models.text.config import T5EncoderConfig
from safelight.models.text.flops import open_clip_flops, t5_flops

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from safelight.models.networks.interface import PackedNetwork
    from safelight.models.packed.attention import PackedAttention
    from safelight.models.packed.linear import LayerFactory
    from safelight.models.text.reading import TextTower

TEXT_ENCODER = "text_encoder"
EXAMPLE_STATES = 16  # of an example text whose length is not given
OPEN_CLIP_CONTEXT = 77  # open_clip's default


class PixArtSpec(NetworkSpec[DiTConfig]):
    """diffusers' `PixArtTransformer2DModel`: self-attention, cross-attention to text, one shared adaLN."""

    class_name = "PixArtTransformer2DModel"
    config_class = DiTConfig
    norm_type = "ada_norm_single"
    title = "a PixArt transformer"

    def read_config(self, config: PartConfig) -> DiTConfig:
        return DiTConfig.from_diffusers(config)

    def build(self, config: DiTConfig) -> nn.Module:
        from safelight.models.networks.dit import DiT

        return DiT(config)

    def pack(self, network: Any, attention: PackedAttention, layers: LayerFactory) -> PackedNetwork:
        from safelight.models.packed.dit import PackedDiT

        return PackedDiT(network, attention, layers)

    def example_text(
        self, config: DiTConfig, num_states: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        import torch

        length = EXAMPLE_STATES if num_states is None else num_states
        return torch.ones(length, config.caption_channels), torch.ones(length, dtype=torch.bool), None

    def text_bytes(self, config: DiTConfig, num_states: int) -> int:
        return num_states * (FLOAT32_BYTES * config.caption_channels + 1)

    def forward_flops(self, config: DiTConfig, height: int, width: int, text_tokens: int) -> int:
        """Operations of one row in one tick.

        A block is 8Nd^2 (self-attention's projections) + 4N^2d (its two products) + 4Nd^2 + 4NLd
        (cross-attention) + 16Nd^2 (MLP).
        """
        d, n = config.width, count_image_tokens(config, height, width)
        block = 28 * n * d * d + 4 * n * n * d + 4 * n * text_tokens * d
        return config.num_layers * block + patch_flops(config, d, config.out_channels, n)

    def text_flops(self, config: DiTConfig, text_tokens: int) -> int:
        """Operations of the caption projection and of every block's text keys and values."""
        d = config.width
        caption = 2 * text_tokens * (config.caption_channels * d + d * d)
        return caption + config.num_layers * 4 * text_tokens * d * d

    def row_flops(self, config: DiTConfig, text_tokens: int, num_times: int) -> int:
        """Zero: text and times are prepared separately (`text_flops`, `times_flops`)."""
        return 0

    def times_flops(self, config: DiTConfig, num_times: int) -> int:
        """Operations of the embeddings of time and image size, and of the shared modulation."""
        d, third = config.width, config.width // 3
        # height, width and aspect ratio
        size = 3 * 2 * (TIME_FREQUENCIES * third + third * third) if config.is_sized else 0
        return num_times * 2 * (TIME_FREQUENCIES * d + d * d + 6 * d * d) + size


class OpenClipConditioning(TextConditioning):
    """An open_clip text tower. Its pooled vector is one more state in front of the token states."""

    parts = (Part(TEXT_ENCODER, open_clip_files, config_file=CLIP_CONFIG, is_in_index=False),)

    @property
    def description(self) -> str:
        return "an open_clip text tower"

    def import_libraries(self) -> None:
        import safelight.models.text.clip  # noqa: F401

    def load_tower(
        self, folder: Path, device: torch.device, dtype: torch.dtype, options: ReadOptions
    ) -> TextTower:
        """Load the tower, which is small and always in float32 on the CPU."""
        from safelight.models.text.clip import ClipTextTower

        return ClipTextTower(folder / TEXT_ENCODER, options)

    def check_fit(self, folder: Path) -> None:
        caption_channels = read_transformer(folder).get("caption_channels")
        width = read_json(folder / TEXT_ENCODER / CLIP_CONFIG)["model_cfg"]["text_cfg"]["width"]
        require_text_width(folder, [TEXT_ENCODER], width, caption_channels)

    def check(self, folder: Path) -> None:
        """Nothing to check: there is one encoder."""

    def num_states(self, configs: Configs) -> int:
        text = configs[TEXT_ENCODER]["model_cfg"]["text_cfg"]
        return 1 + int(text.get("context_length", OPEN_CLIP_CONTEXT))

    def flops(self, configs: Configs) -> int:
        return open_clip_flops(configs[TEXT_ENCODER]["model_cfg"])


@dataclass(frozen=True, slots=True)
class T5Conditioning(TextConditioning):
    """A T5 encoder on `num_tokens`, with a mask that ends with the text."""

    num_tokens: int

    parts = (Part(TEXT_ENCODER, t5_files, tokenizer="tokenizer"),)

    @property
    def description(self) -> str:
        return f"T5-XXL, {self.num_tokens} tokens"

    def import_libraries(self) -> None:
        from safelight.models.text.t5 import import_network

        import_network()

    def load_tower(
        self, folder: Path, device: torch.device, dtype: torch.dtype, options: ReadOptions
    ) -> TextTower:
        from safelight.models.text.t5 import T5Tower

        return T5Tower(folder / TEXT_ENCODER, folder / "tokenizer", self.num_tokens, device, dtype, options)

    def check_fit(self, folder: Path) -> None:
        caption_channels = read_transformer(folder).get("caption_channels")
        width = read_json(folder / TEXT_ENCODER / "config.json").get("d_model")
        require_text_width(folder, [TEXT_ENCODER], width, caption_channels)

    def check(self, folder: Path) -> None:
        """Nothing to check: there is one encoder."""

    def num_states(self, configs: Configs) -> int:
        return self.num_tokens

    def flops(self, configs: Configs) -> int:
        config = checked(T5EncoderConfig, configs[TEXT_ENCODER], minimum=0)
        return t5_flops(config, self.num_tokens)


def has_open_clip(folder: Path) -> bool:
    """Whether the checkpoint's text encoder is an open_clip tower."""
    return (folder / TEXT_ENCODER / CLIP_CONFIG).exists()


def has_t5(folder: Path) -> bool:
    """Whether `model_index.json` names a T5 as the text encoder."""
    return read_part_class(folder, TEXT_ENCODER) == "T5EncoderModel"


PIXART_XL: PartConfig = {
    "_class_name": "PixArtTransformer2DModel", "num_attention_heads": 16, "attention_head_dim": 72,
    "in_channels": 4, "out_channels": 8, "num_layers": 28, "cross_attention_dim": 1152, "sample_size": 128,
    "patch_size": 2, "caption_channels": 4096, "interpolation_scale": 2,
}  # fmt: skip
ALPHA_XL = PublishedPart("PixArt-alpha XL/2", PIXART_XL | {"use_additional_conditions": True})
SIGMA_XL = PublishedPart("PixArt-Sigma XL/2", PIXART_XL | {"use_additional_conditions": False})

NETWORK = PixArtSpec()

# What the two families with a T5 have in common.
_t5_family = partial(
    Family,
    variant="with a T5 text_encoder",
    matches=has_t5,
    network=NETWORK,
    num_steps=20,
    guidance_scale=4.5,
    solver="dpmpp_2m",
    schedule="noise prediction, linear betas",
    sides=(1024, 512),
    has_buckets=True,
    licence="CreativeML Open RAIL++-M",
    extra="t5",
)
FAMILIES = (
    Family(
        name="pixart-clip",
        pipeline="PixArtSigmaPipeline",
        variant="with an open_clip text_encoder",
        matches=has_open_clip,
        network=NETWORK,
        conditioning=OpenClipConditioning(),
        # docs/solvers.md: of the solvers never worse than Euler from ten evaluations on, dpmpp_2m and unipc_2
        # are the most exact. The embedded model draws equally well with both, and about so at guidance 3 to 8
        # (models/weights/emoji-128/curves.json).
        num_steps=20,
        guidance_scale=5.0,
        solver="dpmpp_2m",
        schedule="flow",
        sides=(128,),
        has_buckets=False,
        licence="Apache-2.0",
        origin=(),
    ),
    _t5_family(
        name="pixart-alpha",
        pipeline="PixArtAlphaPipeline",
        conditioning=T5Conditioning(120),
        square_only_sides=(512,),
        origin=("PixArt-alpha/PixArt-XL-2-1024-MS", "PixArt-alpha/PixArt-XL-2-512x512"),
        published=PublishedCheckpoint(
            "pixart-alpha", {TEXT_ENCODER: T5_XXL, "transformer": ALPHA_XL, "vae": VAE_4}
        ),
    ),
    _t5_family(
        name="pixart-sigma",
        pipeline="PixArtSigmaPipeline",
        conditioning=T5Conditioning(300),
        origin=("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "PixArt-alpha/PixArt-Sigma-XL-2-512-MS"),
        published=PublishedCheckpoint(
            "pixart-sigma", {TEXT_ENCODER: T5_XXL, "transformer": SIGMA_XL, "vae": VAE_4}
        ),
    ),
)
