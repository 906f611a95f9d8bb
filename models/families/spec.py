"""The types that describe a model family: `Family`, its `NetworkSpec` and its `TextConditioning`.

No torch is imported here: the gateway and the capacity model read families too. Methods that need torch
import it when they are called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from safelight.models.checkpoints.json_files import CheckpointError, read_json
from safelight.models.checkpoints.model_index import has_optional_part
from safelight.models.checkpoints.read_options import ReadOptions
from safelight.models.checkpoints.weight_files import list_variants
from safelight.models.text.label import Labels

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from safelight.models.checkpoints.tensors import PartFiles
    from safelight.models.networks.interface import NetworkConfig, PackedNetwork
    from safelight.models.packed.attention import PackedAttention
    from safelight.models.packed.linear import LayerFactory
    from safelight.models.text.reading import TextTower

PartConfig = dict[str, Any]  # the configuration file of one part
Configs = Mapping[str, PartConfig]  # by the folder of the part; an optional part may be missing
AnyConfig = TypeVar("AnyConfig", bound="NetworkConfig")


@dataclass(frozen=True, slots=True)
class Part:
    """A folder of a checkpoint that holds weights.

    `load_files` imports the part's library and returns how its files are checked. It is None for the
    transformer and the autoencoder, which every family has and whose class the folder itself names.
    """

    folder: str
    load_files: Callable[[], PartFiles] | None = None
    tokenizer: str | None = None  # the folder of its tokenizer
    is_optional: bool = False
    is_in_index: bool = True  # whether model_index.json names its class
    config_file: str = "config.json"


FLOAT32_BYTES = 4
TRANSFORMER, VAE = Part("transformer"), Part("vae")


@dataclass(frozen=True, slots=True)
class PublishedPart:
    """A part of a published checkpoint: a name, and the options of its `config.json` that decide sizes."""

    name: str
    config: PartConfig


@dataclass(frozen=True, slots=True)
class PublishedCheckpoint:
    """A family's published checkpoint, from which sizes and work are computed without a folder."""

    name: str
    parts: Mapping[str, PublishedPart]  # by the folder of the part
    flow_shift: float | None = None  # of a flow schedule; None: noise prediction on linear betas

    @property
    def configs(self) -> Configs:
        """The configuration of every part, by its folder."""
        return {folder: part.config for folder, part in self.parts.items()}


class NetworkSpec(ABC, Generic[AnyConfig]):
    """A denoising network: how its configuration is read, what is built from it, and what it costs.

    FLOP formulas count a multiply-add as two operations and leave elementwise work out.
    Symbols in them: N image tokens, L text tokens, d width.
    """

    class_name: str  # `_class_name` of transformer/config.json
    config_class: type[AnyConfig]
    norm_type: str | None = None  # identifies it in folders that still say `Transformer2DModel`
    default_sample_size = 128  # latent pixels on a side, where transformer/config.json has no sample_size
    title = "this network"  # its name in error messages
    packs_rows = True  # whether `pack` is implemented; else the engine evaluates one shape after another

    @abstractmethod
    def read_config(self, config: PartConfig) -> AnyConfig:
        """Read transformer/config.json; raise `CheckpointError` for an option that is not supported."""

    @abstractmethod
    def build(self, config: AnyConfig) -> nn.Module:
        """The plain network, a `Network`, with random weights, on torch's default device."""

    def pack(self, network: Any, attention: PackedAttention, layers: LayerFactory) -> PackedNetwork:
        """`network` in the engine's form, which takes its weights over.

        `attention` and `layers` make the parts that depend on the device. Called only if `packs_rows`.
        """
        raise NotImplementedError

    @abstractmethod
    def example_text(
        self, config: AnyConfig, num_states: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """A text for measurements: states (L, D), mask (L,) and the pooled text or None.

        L is `num_states`, or a typical length if that is None.
        """

    def text_bytes(self, config: AnyConfig, num_states: int) -> int:
        """Bytes of one text of `num_states` as it travels: float32 states, mask, pooled text.

        Families override this with a formula that needs no torch.
        """
        tensors = self.example_text(config, num_states)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def is_learned(self, tensor: str) -> bool:
        """Whether the stored `tensor` counts as parameters in the papers."""
        return True

    @abstractmethod
    def forward_flops(self, config: AnyConfig, height: int, width: int, text_tokens: int) -> int:
        """Operations of one row in one tick on latents of `height` x `width`, after all preparation."""

    @abstractmethod
    def text_flops(self, config: AnyConfig, text_tokens: int) -> int:
        """Operations of preparing one text for any plan."""

    @abstractmethod
    def row_flops(self, config: AnyConfig, text_tokens: int, num_times: int) -> int:
        """Operations of combining one prepared text with the `num_times` of a plan, once a sample."""

    @abstractmethod
    def times_flops(self, config: AnyConfig, num_times: int) -> int:
        """Operations of preparing the `num_times` of a plan, once a plan."""


class TextConditioning(ABC):
    """The text side of a family: its encoders and how a prompt becomes the states that the network reads."""

    parts: tuple[Part, ...] = ()  # the text encoders
    check_needs_sound_parts = False  # whether `check` is skipped if a part has a fault
    checked_file = ""  # the file named in reports of unexpected errors in `check`; empty: the folder

    @property
    @abstractmethod
    def description(self) -> str:
        """What reads the prompt, in words."""

    def import_libraries(self) -> None:  # noqa: B027 - optional
        """Import what `load_tower` needs, if that is large: two threads must not import it at the same time.

        By default nothing is imported.
        """

    @abstractmethod
    def load_tower(
        self, folder: Path, device: torch.device, dtype: torch.dtype, options: ReadOptions
    ) -> TextTower:
        """Load the text encoders of the checkpoint in `folder`, and nothing else of it.

        Raises `CheckpointError` naming what is wrong.
        """

    @abstractmethod
    def check_fit(self, folder: Path) -> None:
        """Raise `CheckpointError` if the transformer in `folder` reads another width than the encoders give.

        Only configurations are read.
        """

    @abstractmethod
    def num_states(self, configs: Configs) -> int:
        """The number of states of a text of full length."""

    @abstractmethod
    def flops(self, configs: Configs) -> int:
        """Operations of all encoders in `configs` on one text of full length."""

    @abstractmethod
    def check(self, folder: Path) -> None:
        """Raise `CheckpointError` for faults of the text files beyond those of each part by itself."""

    def read_labels(self, folder: Path) -> Labels | None:
        """The classes that a prompt may name, in families whose prompts are classes."""
        return None


@dataclass(frozen=True, slots=True)
class Family:
    """The checkpoints that are recognised, built and served alike, with their defaults."""

    name: str
    pipeline: str  # `_class_name` of model_index.json
    variant: str  # how it differs from other families with that class, in words
    matches: Callable[[Path], bool]  # whether a folder with that class is this family's
    network: NetworkSpec[Any]
    conditioning: TextConditioning
    num_steps: int
    guidance_scale: float
    solver: str
    schedule: str  # of the published checkpoints, in words; a folder's scheduler_config.json decides
    # Native squares of the published checkpoints, in pixels; a folder's configurations decide.
    sides: tuple[int, ...]
    has_buckets: bool  # whether other aspect ratios are served beside the native square
    licence: str  # of the published weights
    origin: tuple[str, ...]  # Hugging Face repositories of the published checkpoints
    square_only_sides: tuple[int, ...] = ()  # native sides without buckets, where the family has buckets
    timestep_spacing: str = "trailing"
    extra: str | None = None  # optional dependencies of the package that serving needs
    published: PublishedCheckpoint | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every part of a checkpoint: the text encoders, the transformer, the autoencoder."""
        return (*self.conditioning.parts, TRANSFORMER, VAE)

    @property
    def text(self) -> str:
        """What reads the prompt, in words."""
        return self.conditioning.description


def read_transformer(folder: Path) -> PartConfig:
    """The transformer's configuration in the checkpoint `folder`."""
    return read_json(folder / "transformer" / "config.json")


def has_part(folder: Path, part: Part) -> bool:
    """Whether the checkpoint in `folder` has `part`: only an optional part may be missing."""
    return not part.is_optional or has_optional_part(folder, part.folder, part.tokenizer)


def check_variant(folder: Path, family: Family, variant: str) -> None:
    """Raise `CheckpointError` if no part of the checkpoint in `folder` has the `variant`; empty: none."""
    variants = list_variants(folder / part.folder for part in family.parts)
    if variant and variant not in variants:
        listed = f"there are {', '.join(variants)}" if variants else "there is no variant at all"
        raise CheckpointError(f"{folder}: no part has safetensors files of the variant {variant!r}; {listed}")


def require_text_width(
    folder: Path, encoders: Sequence[str], width: object, transformer_width: object, text: str = "text"
) -> None:
    """Raise `CheckpointError` unless the transformer reads the `width` that `encoders` give.

    Args:
        folder: the checkpoint.
        encoders: folders of the text encoders.
        width: channels that the encoders give.
        transformer_width: channels that the transformer reads.
        text: what the transformer reads, in the words of the error message.
    """
    if width != transformer_width:
        raise CheckpointError(
            f"{folder}: the transformer reads {text} of width {transformer_width}, "
            f"the {' and '.join(encoders)} has {width}"
        )


def count_image_tokens(config: NetworkConfig, height: int, width: int) -> int:
    """Image tokens of latents of `height` x `width`."""
    return (height // config.patch_size) * (width // config.patch_size)


def patch_flops(config: NetworkConfig, width: int, out_channels: int, tokens: int) -> int:
    """Operations of turning patches into `tokens` of `width` channels, and tokens into patches."""
    return 2 * tokens * width * config.patch_size**2 * (config.in_channels + out_channels)
