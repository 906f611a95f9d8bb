"""The configurations of the published checkpoints that decide their sizes, as their repositories hold them.

What a config leaves to a default is left out here too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]

PIXART: Config = {
    "_class_name": "PixArtTransformer2DModel", "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8,
    "num_layers": 28, "cross_attention_dim": 1152, "sample_size": 128, "patch_size": 2, "caption_channels": 4096, "interpolation_scale": 2,
}  # fmt: skip
MMDIT: Config = {
    "_class_name": "SD3Transformer2DModel", "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "caption_projection_dim": 1536, "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
}  # fmt: skip
DIT: Config = {
    "_class_name": "DiTTransformer2DModel", "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8,
    "num_layers": 28, "sample_size": 64, "patch_size": 2, "num_embeds_ada_norm": 1000,
}  # fmt: skip
T5_XXL: Config = {
    "model_type": "t5", "architectures": ["T5EncoderModel"], "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240,
    "num_layers": 24, "num_heads": 64, "relative_attention_num_buckets": 32, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
CLIP_L: Config = {
    "model_type": "clip_text_model", "architectures": ["CLIPTextModelWithProjection"], "hidden_size": 768, "intermediate_size": 3072,
    "projection_dim": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu",
}  # fmt: skip
CLIP_BIGG: Config = CLIP_L | {
    "hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1280, "num_hidden_layers": 32, "num_attention_heads": 20,
    "hidden_act": "gelu",
}  # fmt: skip
VAE: Config = {
    "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "latent_channels": 4, "scaling_factor": 0.13025,
}  # fmt: skip
VAE_16 = VAE | {
    "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip


PARTS: dict[str, Config] = {
    "T5-XXL encoder": T5_XXL,
    "CLIP-L text tower": CLIP_L,
    "OpenCLIP bigG text tower": CLIP_BIGG,
    "PixArt-alpha XL/2": PIXART | {"use_additional_conditions": True},
    "PixArt-Sigma XL/2": PIXART | {"use_additional_conditions": False},
    "SD3-medium": MMDIT,
    "SD3.5-medium": MMDIT
    | {"pos_embed_max_size": 384, "qk_norm": "rms_norm", "dual_attention_layers": list(range(13))},
    "SD3.5-large": MMDIT
    | {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"},
    "DiT-XL/2": DIT,
    "autoencoder, 4 channels": VAE,
    "autoencoder, 16 channels": VAE_16,
}
ENCODERS = {
    "text_encoder": "CLIP-L text tower",
    "text_encoder_2": "OpenCLIP bigG text tower",
    "text_encoder_3": "T5-XXL encoder",
}


@dataclass(frozen=True, slots=True)
class Published:
    """A published checkpoint: for each folder the key of its part, and how many states a prompt has."""

    parts: Mapping[str, str]
    num_states: int

    @property
    def transformer(self) -> Config:
        return PARTS[self.parts["transformer"]]

    @property
    def vae(self) -> Config:
        return PARTS[self.parts["vae"]]


def _pixart(transformer: str, num_states: int) -> Published:
    return Published(
        {"text_encoder": "T5-XXL encoder", "transformer": transformer, "vae": "autoencoder, 4 channels"},
        num_states,
    )


def _sd3(transformer: str) -> Published:
    return Published(
        {**ENCODERS, "transformer": transformer, "vae": "autoencoder, 16 channels"}, num_states=77 + 256
    )


PUBLISHED = {
    "pixart-alpha": _pixart("PixArt-alpha XL/2", num_states=120),
    "pixart-sigma": _pixart("PixArt-Sigma XL/2", num_states=300),
    "sd3": _sd3("SD3-medium"),
    "sd3.5-medium": _sd3("SD3.5-medium"),
    "sd3.5-large": _sd3("SD3.5-large"),
    "dit": Published({"transformer": "DiT-XL/2", "vae": "autoencoder, 4 channels"}, num_states=0),
}
