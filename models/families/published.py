"""Parts that several published checkpoints share: text encoders and autoencoders.

Only those options of the published configurations are listed that decide sizes.
An option that a `config.json` leaves to its default is left out here too.
"""

from safelight.models.families.spec import PartConfig, PublishedPart

T5_XXL = PublishedPart(
    "T5-XXL encoder",
    {
        "model_type": "t5", "architectures": ["T5EncoderModel"], "vocab_size": 32128, "d_model": 4096,
        "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "relative_attention_num_buckets": 32,
        "feed_forward_proj": "gated-gelu",
    },
)  # fmt: skip
CLIP_L = PublishedPart(
    "CLIP-L text tower",
    {
        "model_type": "clip_text_model", "architectures": ["CLIPTextModelWithProjection"], "hidden_size": 768,
        "intermediate_size": 3072, "projection_dim": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
    },
)  # fmt: skip
CLIP_BIGG = PublishedPart(
    "OpenCLIP bigG text tower",
    CLIP_L.config
    | {
        "hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1280, "num_hidden_layers": 32,
        "num_attention_heads": 20, "hidden_act": "gelu",
    },
)  # fmt: skip
_KL: PartConfig = {
    "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2, "latent_channels": 4, "scaling_factor": 0.13025,
}  # fmt: skip
VAE_4 = PublishedPart("autoencoder, 4 channels", _KL)
VAE_16 = PublishedPart(
    "autoencoder, 16 channels",
    _KL
    | {
        "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
)  # fmt: skip
