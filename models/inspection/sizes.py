"""Parameters and memory of the published checkpoints, computed from empty networks.

`python -m safelight.models.inspection.sizes` prints the tables of docs/models.md.
Nothing is downloaded and no weight is allocated.
The configurations are those of the published checkpoints in `safelight.models.families`.
"""

import json
import math
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from safelight.models.autoencoders.interface import decode_latents
from safelight.models.autoencoders.loading import build
from safelight.models.autoencoders.options import read_options
from safelight.models.checkpoints.json_files import spatial_compression
from safelight.models.checkpoints.tensors import PartFiles
from safelight.models.denoisers import build_empty, example_text
from safelight.models.families.registry import find_network, list_families, list_published_parts
from safelight.models.families.spec import Family, PartConfig, PublishedCheckpoint
from safelight.models.inspection.expected_tensors import files_of
from safelight.models.networks.interface import Network

NUM_TIMES = 30  # of the plan whose modulations a row holds


@dataclass(frozen=True, slots=True)
class PartSize:
    """Learned parameters, and the numbers that the files hold."""

    num_parameters: int
    num_stored: int


def part_size(files: PartFiles, config: PartConfig) -> PartSize:
    """The size of the part with `config`, whose tensors are those that `files` expects."""
    with config_folder(config) as folder:
        stored = {name: math.prod(shape) for name, shape in files.expected_shapes(folder).items()}
    network = find_network(config)
    learned = [count for name, count in stored.items() if network is None or network.is_learned(name)]
    return PartSize(sum(learned), sum(stored.values()))


def network_activations(family: Family, published: PublishedCheckpoint) -> int:
    """Bytes in bfloat16 at the peak of one evaluation for one guided image of the native size.

    The two rows and all tensors of the evaluation are counted.
    Attention counts its output only, not the workspace of kernels.
    """
    with config_folder(published.configs["transformer"]) as folder:
        network = cast(Network, build_empty(folder).to(torch.bfloat16))
    config = network.config
    with torch.device("meta"):
        states, mask, pooled = example_text(config, family.conditioning.num_states(published.configs))
        states = states.bfloat16()
        if pooled is not None and pooled.is_floating_point():
            pooled = pooled.bfloat16()
        x = torch.empty(2, config.in_channels, config.sample_size, config.sample_size, dtype=torch.bfloat16)
        times = network.prepare_times(torch.empty(NUM_TIMES), (native_side(published),) * 2)

        def evaluate() -> Tensor:
            rows = network.collate([network.prepare_row(states, mask, pooled, times) for _ in range(2)])
            return network.predict(x, rows, [0, 0])

        return peak_bytes(evaluate)


def decoding_activations(published: PublishedCheckpoint) -> int:
    """Bytes in bfloat16 at the peak of decoding one image of the native size."""
    config, side = published.configs["vae"], published.configs["transformer"]["sample_size"]
    with torch.device("meta"):
        vae = build(read_options(config)).bfloat16()
        latents = torch.empty(1, config["latent_channels"], side, side, dtype=torch.bfloat16)
        return peak_bytes(lambda: decode_latents(vae, latents))


def native_side(published: PublishedCheckpoint) -> int:
    """Pixels on a side of the native square."""
    configs = published.configs
    return int(configs["transformer"]["sample_size"]) * spatial_compression(configs["vae"])


def peak_bytes(compute: Callable[[], object]) -> int:
    """The largest number of bytes that tensors created by `compute` take at one time.

    On the meta device nothing is computed.
    """
    peak = _PeakMemory()
    with _FusedAttention(), peak, torch.inference_mode():
        compute()
    return peak.bytes


class _PeakMemory(TorchDispatchMode):
    """Counts the bytes of storages from their creation until they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self._live = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, result)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            weakref.finalize(storage, self._free, storage.nbytes())
            self._live += storage.nbytes()
            self.bytes = max(self.bytes, self._live)

    def _free(self, count: int) -> None:
        self._live -= count


class _FusedAttention(TorchFunctionMode):
    """Attention without its N x L matrix of weights, as on GPUs; the meta device would allocate it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            query, _, value = args[:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


@contextmanager
def config_folder(config: PartConfig) -> Iterator[Path]:
    """A part's folder that holds only its configuration."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        yield Path(folder)


def parts_table() -> str:
    """The table of every published part: parameters, and bytes of its weights on a device."""
    rows = ["| part | parameters | bfloat16 | float32 |", "|---|---:|---:|---:|"]
    files = _published_files()
    for name, part in list_published_parts().items():
        size = part_size(files[name], part.config)
        bfloat16, float32 = _gigabytes(2 * size.num_stored), _gigabytes(4 * size.num_stored)
        rows.append(f"| {name} | {size.num_parameters / 1e9:.3f} B | {bfloat16} | {float32} |")
    return "\n".join(rows)


def stages_table() -> str:
    """The table of every family in bfloat16: weights of each stage, and its peak memory for one image."""
    rows = ["| family | image | text | denoising | decoding | all |", "|---|---|---:|---:|---:|---:|"]
    for family in list_families():
        if family.published is not None:
            side = native_side(family.published)
            cells = " | ".join(_stage_cells(family, family.published))
            rows.append(f"| `{family.name}` | {side}x{side} | {cells} |")
    return "\n".join(rows)


def _published_files() -> dict[str, PartFiles]:
    """How the files of every published part are checked, by the part's name."""
    return {
        family.published.parts[part.folder].name: files_of(part)
        for family in list_families()
        if family.published is not None
        for part in family.parts
    }


def _stage_cells(family: Family, published: PublishedCheckpoint) -> list[str]:
    weights = {
        part.folder: 2 * part_size(files_of(part), published.configs[part.folder]).num_stored
        for part in family.parts
    }
    optional = sum(weights[part.folder] for part in family.parts if part.is_optional)
    network, decoding = network_activations(family, published), decoding_activations(published)
    total = sum(weights.values()) + network + decoding
    vae, transformer = weights.pop("vae"), weights.pop("transformer")
    return [
        _with_and_without(sum(weights.values()), optional),
        f"{_gigabytes(transformer)} + {_gigabytes(network)}",
        f"{_gigabytes(vae)} + {_gigabytes(decoding)}",
        _with_and_without(total, optional),
    ]


def _with_and_without(count: int, optional: int) -> str:
    return _gigabytes(count) + (f"; without T5 {_gigabytes(count - optional)}" if optional else "")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


if __name__ == "__main__":
    sys.stdout.write(f"{parts_table()}\n\n{stages_table()}\n")
