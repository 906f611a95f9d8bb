"""CLIP text towers in transformers' layout (`CLIPTextModelWithProjection`), run by open_clip.

The two libraries name the same tensors differently: open_clip keeps the projections of queries, keys and
values in one, and its last projection transposed.

Shapes: B texts, L text tokens, D width, P projected width.
"""

from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from safelight.models.checkpoints.read_options import DEFAULT_READ_OPTIONS, ReadOptions
from safelight.models.checkpoints.tensors import PartFiles, Shapes, fill
from safelight.models.text.bpe import BytePairs
from safelight.models.text.config import ClipTextConfig
from safelight.models.text.flops import clip_flops
from safelight.models.text.hf_folder import HF_WEIGHTS, load_exactly
from safelight.models.text.open_clip_classes import LayerNorm, QuickGELU, TextTransformer

ACTIVATION_CLASSES = {"quick_gelu": QuickGELU, "gelu": nn.GELU}  # by `CLIP_ACTIVATIONS`
EMBEDDINGS = "text_model.embeddings"
LAYERS = "text_model.encoder.layers"
LAST_NORM = "text_model.final_layer_norm"
PROJECTION = "text_projection.weight"
QUERY_KEY_VALUE = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OPEN_CLIP_NAMES = {  # parts of a layer that differ in name only, transformers' first
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
POSITION_IDS = f"{EMBEDDINGS}.position_ids"  # 0, 1, 2, ...: a buffer in older files

T = TypeVar("T")


def expected_shapes(folder: Path) -> Shapes:
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


def canonical_names(tensors: dict[str, T]) -> dict[str, T]:
    """A file's tensors (or their shapes) by name, without the position numbers of older files."""
    return {name: value for name, value in tensors.items() if name != POSITION_IDS}


def to_open_clip(tensors: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """The tensors of `expected_shapes` under open_clip's names, for a tower of `num_layers`."""
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
            mapped |= {
                f"{ours}.{name}.{kind}": tensors[f"{theirs}.{hf_name}.{kind}"]
                for hf_name, name in OPEN_CLIP_NAMES.items()
            }
            mapped[f"{ours}.attn.in_proj_{kind}"] = torch.cat(
                [tensors[f"{theirs}.{part}.{kind}"] for part in QUERY_KEY_VALUE]
            )
    return mapped


def check_tokenizer(folder: Path, tokenizer: Path) -> None:
    """Raise `CheckpointError` unless the folder `tokenizer` holds CLIP's tokenizer."""
    BytePairs().read_folder(tokenizer)


FILES = PartFiles(HF_WEIGHTS, expected_shapes, canonical_names, check_tokenizer)


class HfClipTower:
    """The text tower in `folder`, on a device and in a dtype."""

    def __init__(
        self,
        folder: Path,
        device: torch.device | str,
        dtype: torch.dtype,
        options: ReadOptions = DEFAULT_READ_OPTIONS,
    ):
        self.config = ClipTextConfig.read(folder)
        tensors = load_exactly(folder, expected_shapes(folder), canonical_names, device, dtype, options)
        self._tower = build_empty(self.config)
        fill(self._tower, to_open_clip(tensors, self.config.num_hidden_layers), folder)
        with torch.device(device):
            # The file has no mask, so the tower's is still on the meta device.
            self._tower.attn_mask = self._tower.build_causal_mask()
        self._penultimate = self.config.num_hidden_layers - 2
        self._device = device
        self.flops_per_text = clip_flops(self.config)

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, L) to states and the pooled text.

        The states (B, L, D) are those before the last layer, without a norm; the pooled text (B, P) is the
        projected state of the end mark.
        """
        out = self._tower.forward_intermediates(
            ids.to(self._device), indices=[self._penultimate], output_fmt="NLC"
        )
        return out["text_intermediates"][0], out["text_features"]


def build_empty(config: ClipTextConfig) -> TextTransformer:
    """open_clip's tower for `config` without weights, on the meta device."""
    with torch.device("meta"):
        return TextTransformer(
            context_length=config.max_position_embeddings,
            vocab_size=config.vocab_size,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            layers=config.num_hidden_layers,
            mlp_ratio=config.intermediate_size / config.hidden_size,
            output_dim=config.projection_dim,
            act_layer=ACTIVATION_CLASSES[config.hidden_act],
            norm_layer=partial(LayerNorm, eps=config.layer_norm_eps),
        )
