"""What the published checkpoints need, computed from empty networks: `python -m safelight.models.inspection.sizes` prints the tables of docs/models.md.

Nothing is fetched and no weight is made: the configurations are those of `safelight.models.checkpoints.published`.
"""

import json
import math
import re
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from safelight.models.checkpoints.families import FAMILIES, Family, spatial_compression
from safelight.models.checkpoints.published import PARTS, PUBLISHED, Config, Published
from safelight.models.denoisers import build_empty
from safelight.models.inspection.expected_tensors import PART_KINDS
from safelight.models.vae import CLASSES, decode_latents

# of DiT's blocks each has embedders of its own in diffusers' files, all equal; the paper counts them once
COPY = re.compile(r"transformer_blocks\.[1-9]\d*\.norm1\.emb\.")
POSITION_TABLE = "pos_embed.pos_embed"  # of SD3: stored, not learned
NUM_TIMES = 30  # of the plan whose modulations a row holds


@dataclass(frozen=True, slots=True)
class PartSize:
    """Learned parameters, and the numbers that files hold for them."""

    num_parameters: int
    num_stored: int


def part_size(kind: str, config: Config) -> PartSize:
    """The size of a part, `kind` a key of `safelight.models.inspection.expected_tensors.PART_KINDS`."""
    with config_folder(config) as folder:
        stored = {name: math.prod(shape) for name, shape in PART_KINDS[kind].blueprint(folder).items()}
    learned = {
        name: count for name, count in stored.items() if name != POSITION_TABLE and not COPY.match(name)
    }
    return PartSize(sum(learned.values()), sum(stored.values()))


def network_activations(published: Published) -> int:
    """Bytes in bfloat16 at the peak of one evaluation for one guided image of the native size: its two rows and what they make.

    Attention is taken to make nothing but its output; what kernels use besides is not counted.
    """
    with config_folder(published.transformer) as folder:
        network = build_empty(folder).to(torch.bfloat16)
    config: Any = network.config
    with torch.device("meta"):
        states, mask, pooled = _reading(config, published.num_states)
        x = torch.empty(2, config.in_channels, config.sample_size, config.sample_size, dtype=torch.bfloat16)
        times = network.prepare_times(torch.empty(NUM_TIMES), (native_side(published),) * 2)

        def evaluate() -> Tensor:
            rows = network.collate([network.prepare_row(states, mask, pooled, times) for _ in range(2)])
            return network.predict(x, rows, [0, 0])

        return peak_bytes(evaluate)


def decoding_activations(published: Published) -> int:
    """Bytes in bfloat16 at the peak of decoding one image of the native size."""
    config, side = published.vae, published.transformer["sample_size"]
    with torch.device("meta"):
        vae = CLASSES[config["_class_name"]](
            **{key: value for key, value in config.items() if key != "_class_name"}
        ).bfloat16()
        latents = torch.empty(1, config["latent_channels"], side, side, dtype=torch.bfloat16)
        return peak_bytes(lambda: decode_latents(vae, latents))


def native_side(published: Published) -> int:
    return published.transformer["sample_size"] * spatial_compression(published.vae)


def peak_bytes(compute: Callable[[], object]) -> int:
    """The most bytes that tensors made by `compute` take at a time; on the meta device it computes nothing."""
    with _FusedAttention(), _Peak() as peak, torch.inference_mode():
        compute()
    return peak.bytes


class _Peak(TorchDispatchMode):
    """Counts the bytes of storages from when they are made until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self._live = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, made)
        return made

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            weakref.finalize(storage, self._drop, storage.nbytes())
            self._live += storage.nbytes()
            self.bytes = max(self.bytes, self._live)

    def _drop(self, count: int) -> None:
        self._live -= count


class _FusedAttention(TorchFunctionMode):
    """Attention as GPUs compute it: the matrix of weights, which the meta device would make, is never there."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            query, _, value = args[:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


@contextmanager
def config_folder(config: Config) -> Iterator[Path]:
    """A part's folder that holds nothing but its configuration."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        yield Path(folder)


def _reading(config: Any, num_states: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """States, mask and pooled vector, empty, as the network of `config` reads them."""
    width = getattr(config, "caption_channels", 0) or getattr(config, "joint_attention_dim", 0)
    states, mask = (
        torch.empty(num_states, width, dtype=torch.bfloat16),
        torch.empty(num_states, dtype=torch.bool),
    )
    if hasattr(config, "num_embeds_ada_norm"):
        return states, mask, torch.empty(1, dtype=torch.long)
    pooled = getattr(config, "pooled_projection_dim", None)
    return states, mask, None if pooled is None else torch.empty(pooled, dtype=torch.bfloat16)


def _kinds() -> dict[str, str]:
    """The kind of every published part."""
    return {
        PUBLISHED[family.name].parts[part.folder]: part.kind
        for family in FAMILIES
        if family.name in PUBLISHED
        for part in family.parts
    }


def parts_table() -> str:
    """Every part: parameters, and bytes of its weights on a device."""
    rows = ["| part | parameters | bfloat16 | float32 |", "|---|---:|---:|---:|"]
    kinds = _kinds()
    for name, config in PARTS.items():
        size = part_size(kinds[name], config)
        rows.append(
            f"| {name} | {size.num_parameters / 1e9:.3f} B | {_gigabytes(2 * size.num_stored)} | {_gigabytes(4 * size.num_stored)} |"
        )
    return "\n".join(rows)


def stages_table() -> str:
    """Every family in bfloat16: the weights of each stage, and what it makes at its peak for one image."""
    rows = ["| family | image | text | denoising | decoding | all |", "|---|---|---:|---:|---:|---:|"]
    for family in FAMILIES:
        if published := PUBLISHED.get(family.name):
            side = native_side(published)
            rows.append(
                f"| `{family.name}` | {side}x{side} | {' | '.join(_stage_cells(family, published))} |"
            )
    return "\n".join(rows)


def _stage_cells(family: Family, published: Published) -> list[str]:
    held = {
        part.folder: 2 * part_size(part.kind, PARTS[published.parts[part.folder]]).num_stored
        for part in family.parts
    }
    optional = sum(held[part.folder] for part in family.parts if part.is_optional)
    network, decoding = network_activations(published), decoding_activations(published)
    everything = sum(held.values()) + network + decoding
    vae, transformer = held.pop("vae"), held.pop("transformer")
    return [
        _with_and_without(sum(held.values()), optional),
        f"{_gigabytes(transformer)} + {_gigabytes(network)}",
        f"{_gigabytes(vae)} + {_gigabytes(decoding)}",
        _with_and_without(everything, optional),
    ]


def _with_and_without(count: int, optional: int) -> str:
    return _gigabytes(count) + (f"; without T5 {_gigabytes(count - optional)}" if optional else "")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


if __name__ == "__main__":
    sys.stdout.write(f"{parts_table()}\n\n{stages_table()}\n")
