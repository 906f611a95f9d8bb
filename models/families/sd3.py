"""The Stable Diffusion 3 and 3.5 families: an MMDiT with two CLIPs and an optional T5."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.models.checkpoints.json_files import read_json
from safelight.models.checkpoints.options import checked
from safelight.models.checkpoints.read_options import ReadOptions
from safelight.models.families.encoders import hf_clip_files, t5_files
from safelight.models.families.published import CLIP_BIGG, CLIP_L, T5_XXL, VAE_16
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
from safelight.models.networks.config import TIME_FREQUENCIES, MMDiTConfig
from safelight.models.text.config import SD3_T5_TOKENS, ClipTextConfig, T5EncoderConfig
from safelight.models.text.flops import clip_flops, t5_flops

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from safelight.models.networks.interface import PackedNetwork
    from safelight.models.packed.attention import PackedAttention
    from safelight.models.packed.linear import LayerFactory
    from safelight.models.text.reading import TextTower

CLIPS = ("text_encoder", "text_encoder_2")  # CLIP-L, then OpenCLIP bigG
T5 = "text_encoder_3"
CLIP_CONTEXT = 77  # transformers' default
POOLED_WIDTH, PROJECTION_WIDTH = 2048, 512  # diffusers' default of a transformer, transformers' of a CLIP
POSITION_TABLE = "pos_embed.pos_embed"  # stored, not learned


class MMDiTSpec(NetworkSpec[MMDiTConfig]):
    """diffusers' `SD3Transformer2DModel`: one attention over image and text, an adaLN a block and stream."""

    class_name = "SD3Transformer2DModel"
    config_class = MMDiTConfig
    title = "a Stable Diffusion 3 transformer"

    def read_config(self, config: PartConfig) -> MMDiTConfig:
        return MMDiTConfig.from_diffusers(config)

    def build(self, config: MMDiTConfig) -> nn.Module:
        from safelight.models.networks.mmdit import MMDiT

        return MMDiT(config)

    def pack(self, network: Any, attention: PackedAttention, layers: LayerFactory) -> PackedNetwork:
        from safelight.models.packed.mmdit import PackedMMDiT

        return PackedMMDiT(network, attention, layers)

    def example_text(
        self, config: MMDiTConfig, num_states: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        import torch

        length = CLIP_CONTEXT + SD3_T5_TOKENS if num_states is None else num_states
        states = torch.ones(length, config.joint_attention_dim)
        return states, torch.ones(length, dtype=torch.bool), torch.zeros(config.pooled_projection_dim)

    def text_bytes(self, config: MMDiTConfig, num_states: int) -> int:
        states = num_states * (FLOAT32_BYTES * config.joint_attention_dim + 1)
        return states + FLOAT32_BYTES * config.pooled_projection_dim

    def is_learned(self, tensor: str) -> bool:
        return tensor != POSITION_TABLE

    def forward_flops(self, config: MMDiTConfig, height: int, width: int, text_tokens: int) -> int:
        """Operations of one row in one tick.

        A block is 24(N + L)d^2 + 4(N + L)^2d, and 8Nd^2 + 4N^2d more if it is dual.
        The last block leaves out 18Ld^2 of the text.
        """
        d, n = config.width, count_image_tokens(config, height, width)
        block = 24 * (n + text_tokens) * d * d + 4 * (n + text_tokens) ** 2 * d
        dual = len(config.dual_attention_layers) * (8 * n * d * d + 4 * n * n * d)
        left_out = 18 * text_tokens * d * d
        return config.num_layers * block + dual - left_out + patch_flops(config, d, config.out_channels, n)

    def text_flops(self, config: MMDiTConfig, text_tokens: int) -> int:
        """Operations of the text's projection."""
        return 2 * text_tokens * config.joint_attention_dim * config.width

    def row_flops(self, config: MMDiTConfig, text_tokens: int, num_times: int) -> int:
        """Operations of the pooled text's embedding, and of every adaLN at every time."""
        d, duals = config.width, len(config.dual_attention_layers)
        parts = config.num_layers * 12 - 4 + 3 * duals + 2  # the last block's text has two, not six
        return 2 * (config.pooled_projection_dim * d + d * d) + num_times * 2 * parts * d * d

    def times_flops(self, config: MMDiTConfig, num_times: int) -> int:
        """Operations of the time embedding."""
        return num_times * 2 * (TIME_FREQUENCIES * config.width + config.width**2)


class ThreeEncoderConditioning(TextConditioning):
    """CLIP-L and OpenCLIP bigG side by side on channels, then the states of T5, or zeros without one."""

    parts = (
        Part(CLIPS[0], hf_clip_files, tokenizer="tokenizer"),
        Part(CLIPS[1], hf_clip_files, tokenizer="tokenizer_2"),
        Part(T5, t5_files, tokenizer="tokenizer_3", is_optional=True),
    )
    check_needs_sound_parts = True

    @property
    def description(self) -> str:
        return "CLIP-L and OpenCLIP bigG, 77 tokens; T5-XXL, 256 tokens, zeros in its place when absent"

    def import_libraries(self) -> None:
        import safelight.models.text.sd3  # noqa: F401

    def load_tower(
        self, folder: Path, device: torch.device, dtype: torch.dtype, options: ReadOptions
    ) -> TextTower:
        from safelight.models.text.sd3 import Sd3Towers

        return Sd3Towers(folder, device, dtype, options)

    def check_fit(self, folder: Path) -> None:
        pooled_width = read_transformer(folder).get("pooled_projection_dim", POOLED_WIDTH)
        configs = [read_json(folder / part / "config.json") for part in CLIPS]
        width = sum(config.get("projection_dim", PROJECTION_WIDTH) for config in configs)
        require_text_width(folder, CLIPS, width, pooled_width, "pooled text")

    def check(self, folder: Path) -> None:
        from safelight.models.text.sd3 import check_tokenizers

        check_tokenizers(folder)

    def num_states(self, configs: Configs) -> int:
        return int(configs[CLIPS[0]].get("max_position_embeddings", CLIP_CONTEXT)) + SD3_T5_TOKENS

    def flops(self, configs: Configs) -> int:
        clips = sum(clip_flops(checked(ClipTextConfig, configs[part], minimum=0)) for part in CLIPS)
        if T5 not in configs:
            return clips
        return clips + t5_flops(checked(T5EncoderConfig, configs[T5], minimum=0), SD3_T5_TOKENS)


def is_dual(folder: Path) -> bool:
    """Whether some blocks let the image attend to itself alone, as in 3.5-medium."""
    return bool(read_transformer(folder).get("dual_attention_layers"))


def is_normed(folder: Path) -> bool:
    """Whether queries and keys are normed and no block is dual, as in 3.5-large."""
    return read_transformer(folder).get("qk_norm") is not None and not is_dual(folder)


def is_plain(folder: Path) -> bool:
    """Whether queries and keys are not normed and no block is dual, as in Stable Diffusion 3."""
    return read_transformer(folder).get("qk_norm") is None and not is_dual(folder)


def _publish(checkpoint: str, transformer: str, config: PartConfig) -> PublishedCheckpoint:
    parts = {CLIPS[0]: CLIP_L, CLIPS[1]: CLIP_BIGG, T5: T5_XXL}
    parts |= {"transformer": PublishedPart(transformer, config), "vae": VAE_16}
    return PublishedCheckpoint(checkpoint, parts, flow_shift=3.0)


MMDIT: PartConfig = {
    "_class_name": "SD3Transformer2DModel", "sample_size": 128, "patch_size": 2, "in_channels": 16,
    "out_channels": 16, "num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24,
    "caption_projection_dim": 1536, "joint_attention_dim": 4096, "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}  # fmt: skip
MEDIUM_35 = MMDIT | {
    "pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": list(range(13)),
}  # fmt: skip
LARGE_35 = MMDIT | {
    "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm",
}  # fmt: skip

# What the three families have in common.
_sd3_family = partial(
    Family,
    pipeline="StableDiffusion3Pipeline",
    network=MMDiTSpec(),
    conditioning=ThreeEncoderConditioning(),
    solver="euler",
    schedule="flow, shift 3",
    timestep_spacing="linspace",
    sides=(1024,),
    has_buckets=True,
    licence="Stability AI Community License",
    extra="t5",
)
FAMILIES = (
    _sd3_family(
        name="sd3",
        variant="without qk_norm",
        matches=is_plain,
        num_steps=28,
        guidance_scale=7.0,
        origin=("stabilityai/stable-diffusion-3-medium-diffusers",),
        published=_publish("sd3-medium", "SD3-medium", MMDIT),
    ),
    _sd3_family(
        name="sd3.5-medium",
        variant="with dual_attention_layers",
        matches=is_dual,
        num_steps=40,
        guidance_scale=4.5,
        origin=("stabilityai/stable-diffusion-3.5-medium",),
        published=_publish("sd3.5-medium", "SD3.5-medium", MEDIUM_35),
    ),
    _sd3_family(
        name="sd3.5-large",
        variant="with qk_norm",
        matches=is_normed,
        num_steps=28,
        guidance_scale=3.5,
        origin=("stabilityai/stable-diffusion-3.5-large", "stabilityai/stable-diffusion-3.5-large-turbo"),
        published=_publish("sd3.5-large", "SD3.5-large", LARGE_35),
    ),
)
