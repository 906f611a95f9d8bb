"""The configurations of the text encoders in transformers' layout. No torch is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safelight.models.checkpoints.json_files import CheckpointError, read_json
from safelight.models.checkpoints.options import Depth, Options, Positive, checked

T5_ACTIVATIONS = ("relu", "gated-gelu")  # of the MLP: T5 1.0, and 1.1 as PixArt and Stable Diffusion 3 use it
CLIP_ACTIVATIONS = ("quick_gelu", "gelu")
# The configs of older CLIPs hold this value, whatever the vocabulary. transformers then pools at the largest
# id, as open_clip always does.
LEGACY_EOS_TOKEN_ID = 2
SD3_T5_TOKENS = 256  # context length of the T5 in Stable Diffusion 3


@dataclass(frozen=True, slots=True)
class T5EncoderConfig:
    """The options of transformers' `T5Config` that decide shapes and tokens, with its names and defaults."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: Depth = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    feed_forward_proj: str = "relu"
    pad_token_id: int = 0
    eos_token_id: int = 1

    @property
    def is_gated(self) -> bool:
        """Whether the MLP has a gate."""
        return self.feed_forward_proj == "gated-gelu"

    @property
    def inner(self) -> int:
        """Width of attention: heads times channels a head."""
        return self.num_heads * self.d_kv

    @classmethod
    def read(cls, folder: Path) -> T5EncoderConfig:
        """The `config.json` in `folder`.

        Raises `CheckpointError` if it is another model's or asks for something that is not supported.
        """
        path = folder / "config.json"
        config = read_hf_config(folder, cls, "t5")
        if config.feed_forward_proj not in T5_ACTIVATIONS:
            raise CheckpointError(
                f"{path}: feed_forward_proj is {config.feed_forward_proj!r}, "
                f"only {', '.join(T5_ACTIVATIONS)} are supported"
            )
        # Each of the nearest distances has a bucket; all others up to the longest share the rest.
        nearest = config.relative_attention_num_buckets // 4
        if not 1 <= nearest < config.relative_attention_max_distance:
            raise CheckpointError(
                f"{path}: {config.relative_attention_num_buckets} buckets do not cover distances "
                f"up to {config.relative_attention_max_distance}"
            )
        return config


@dataclass(frozen=True, slots=True)
class ClipTextConfig:
    """The options of transformers' `CLIPTextConfig` that make the network, with its names and defaults."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: Depth = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Positive = 1e-5
    eos_token_id: int = 49407

    @classmethod
    def read(cls, folder: Path) -> ClipTextConfig:
        """The `config.json` in `folder`.

        Raises `CheckpointError` if it is another model's or asks for something that is not supported.
        """
        config = read_hf_config(folder, cls, "clip_text_model")
        if fault := _find_clip_fault(config):
            raise CheckpointError(f"{folder / 'config.json'}: {fault}")
        return config


def read_hf_config(folder: Path, config_class: type[Options], model_type: str) -> Options:
    """Read the options in `folder/config.json` that `config_class` has fields for.

    Raises `CheckpointError` if the file is another model's or a value has the wrong type.
    """
    path = folder / "config.json"
    content = read_json(path)
    if content.get("model_type") != model_type:
        raise CheckpointError(f"{path}: model_type is {content.get('model_type')!r}, expected {model_type!r}")
    if content.get("quantization_config"):
        raise CheckpointError(
            f"{path}: quantization_config is not supported, only weights in a floating-point type"
        )
    try:
        return checked(config_class, content, minimum=0)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _find_clip_fault(config: ClipTextConfig) -> str | None:
    if config.hidden_act not in CLIP_ACTIVATIONS:
        return f"hidden_act is {config.hidden_act!r}, only {', '.join(CLIP_ACTIVATIONS)} are supported"
    if config.hidden_size % config.num_attention_heads:
        return f"{config.num_attention_heads} heads do not divide a width of {config.hidden_size}"
    if config.num_hidden_layers < 2:
        return f"num_hidden_layers is {config.num_hidden_layers}, there is no layer before the last"
    if config.eos_token_id not in (LEGACY_EOS_TOKEN_ID, config.vocab_size - 1):
        return f"eos_token_id is {config.eos_token_id}, only the last token of the vocabulary is supported"
    return None
