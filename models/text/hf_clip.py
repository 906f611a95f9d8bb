"""CLIP text towers in transformers' layout (`CLIPTextModelWithProjection`), run by open_clip.

The two libraries name the same tensors differently: open_clip keeps the projections of queries, keys and values in one,
and its last projection transposed.

Shapes: B texts, L text tokens, D width, P projected width.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from open_clip.transformer import LayerNorm, QuickGELU, TextTransformer
from torch import Tensor, nn

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.checkpoints.options import Depth, Positive
from safelight.models.checkpoints.tensors import Shapes, fill
from safelight.models.text.clip import text_flops
from safelight.models.text.hf_folder import load_exactly, read_config

ACTIVATIONS = {"quick_gelu": QuickGELU, "gelu": nn.GELU}
END_ID_BEFORE_IT_WAS_RIGHT = (
    2  # what older configs say of every CLIP; transformers then pools at the largest id, as open_clip does
)

EMBEDDINGS, LAYERS, LAST_NORM = (
    "text_model.embeddings",
    "text_model.encoder.layers",
    "text_model.final_layer_norm",
)
PROJECTION = "text_projection.weight"
QUERY_KEY_VALUE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
SAME = {  # parts of a layer that the libraries only name differently
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
POSITION_IDS = f"{EMBEDDINGS}.position_ids"  # 0, 1, 2, ...: a buffer that older files hold

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ClipTextConfig:
    """The options of transformers' `CLIPTextConfig` that make the network, by its names and with its defaults."""

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
    def read(cls, folder: Path) -> "ClipTextConfig":
        """The `config.json` in `folder`; `CheckpointError` naming what is not CLIP's or not built."""
        read = read_config(folder, cls, "clip_text_model")
        _refuse_what_is_not_built(read, folder / "config.json")
        return read


def _refuse_what_is_not_built(config: ClipTextConfig, path: Path) -> None:
    if config.hidden_act not in ACTIVATIONS:
        raise CheckpointError(
            f"{path}: hidden_act is {config.hidden_act!r}, only {', '.join(ACTIVATIONS)} are supported"
        )
    if config.hidden_size % config.num_attention_heads:
        raise CheckpointError(
            f"{path}: {config.num_attention_heads} heads do not divide a width of {config.hidden_size}"
        )
    if config.num_hidden_layers < 2:
        raise CheckpointError(
            f"{path}: num_hidden_layers is {config.num_hidden_layers}, there is no layer before the last"
        )
    if config.eos_token_id not in (END_ID_BEFORE_IT_WAS_RIGHT, config.vocab_size - 1):
        raise CheckpointError(
            f"{path}: eos_token_id is {config.eos_token_id}, only the last token of the vocabulary is supported"
        )


def blueprint(folder: Path) -> Shapes:
    """Names and shapes of the tensors that the weights in `folder` must hold, in transformers' naming."""
    config = ClipTextConfig.read(folder)
    width, mlp = config.hidden_size, config.intermediate_size
    shapes: Shapes = {
        f"{EMBEDDINGS}.token_embedding.weight": (config.vocab_size, width),
        f"{EMBEDDINGS}.position_embedding.weight": (config.max_position_embeddings, width),
        f"{LAST_NORM}.weight": (width,),
        f"{LAST_NORM}.bias": (width,),
        PROJECTION: (config.projection_dim, width),
    }
    square = (width, width)
    weights = {
        "layer_norm1": (width,),
        "layer_norm2": (width,),
        "mlp.fc1": (mlp, width),
        "mlp.fc2": (width, mlp),
    }
    weights |= dict.fromkeys((*QUERY_KEY_VALUE, "self_attn.out_proj"), square)
    for layer in range(config.num_hidden_layers):
        for part, shape in weights.items():
            shapes |= {f"{LAYERS}.{layer}.{part}.weight": shape, f"{LAYERS}.{layer}.{part}.bias": shape[:1]}
    return shapes


def canonical(found: dict[str, T]) -> dict[str, T]:
    """What a file holds by name, tensors or shapes, without the position numbers that older ones carry along."""
    return {name: value for name, value in found.items() if name != POSITION_IDS}


def to_open_clip(tensors: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """The tensors of a `blueprint` under open_clip's names."""
    mapped = {
        "token_embedding.weight": tensors[f"{EMBEDDINGS}.token_embedding.weight"],
        "positional_embedding": tensors[f"{EMBEDDINGS}.position_embedding.weight"],
        "ln_final.weight": tensors[f"{LAST_NORM}.weight"],
        "ln_final.bias": tensors[f"{LAST_NORM}.bias"],
        "text_projection": tensors[PROJECTION].T.contiguous(),
    }
    for layer in range(num_layers):
        ours, theirs = f"transformer.resblocks.{layer}", f"{LAYERS}.{layer}"
        for kind in ("weight", "bias"):
            mapped |= {f"{ours}.{to}.{kind}": tensors[f"{theirs}.{of}.{kind}"] for of, to in SAME.items()}
            mapped[f"{ours}.attn.in_proj_{kind}"] = torch.cat(
                [tensors[f"{theirs}.{part}.{kind}"] for part in QUERY_KEY_VALUE]
            )
    return mapped


class HfClipTower:
    """The text tower in `folder`, on a device and in a dtype."""

    def __init__(self, folder: Path, device: torch.device | str, dtype: torch.dtype):
        self.config = ClipTextConfig.read(folder)
        tensors = load_exactly(folder, blueprint(folder), canonical, device, dtype)
        self._tower = _build(self.config)
        fill(self._tower, to_open_clip(tensors, self.config.num_hidden_layers), folder)
        with torch.device(device):
            self._tower.attn_mask = (
                self._tower.build_causal_mask()
            )  # no tensor of the file, so it is still on meta
        self._penultimate = self.config.num_hidden_layers - 2
        self._device = device
        self.flops_per_text = text_flops(self._tower)

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, L) to the states (B, L, D) before the last layer, without a norm, and the projected state (B, P) of the end mark."""
        out = self._tower.forward_intermediates(
            ids.to(self._device), indices=[self._penultimate], output_fmt="NLC"
        )
        return out["text_intermediates"][0], out["text_features"]


def _build(config: ClipTextConfig) -> TextTransformer:
    with torch.device("meta"):
        return TextTransformer(
            context_length=config.max_position_embeddings,
            vocab_size=config.vocab_size,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            layers=config.num_hidden_layers,
            mlp_ratio=config.intermediate_size / config.hidden_size,
            output_dim=config.projection_dim,
            act_layer=ACTIVATIONS[config.hidden_act],
            norm_layer=partial(LayerNorm, eps=config.layer_norm_eps),
        )
