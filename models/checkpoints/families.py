"""Which models there are and how a checkpoint folder is recognised. No torch here: the gateway reads it too.

A checkpoint is a diffusers-layout folder, the embedded ones included; what such a folder cannot say (defaults, sizes,
licence) stands here.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelight.models.checkpoints.json_files import CLIP_CONFIG, CheckpointError, read_json

WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"

Size = tuple[int, int]  # width, height, in pixels

# PixArt's and SDXL's aspect ratios at about the area of 1024 x 1024; other native sides have the same, scaled
BUCKETS: tuple[Size, ...] = (
    (1152, 896),
    (896, 1152),
    (1216, 832),
    (832, 1216),
    (1344, 768),
    (768, 1344),
    (1536, 640),
    (640, 1536),
)
BUCKET_SIDE = 1024
UNBOUNDED = 2**31
LONGEST_SIDE = 4096  # of a native square, in pixels: twice that of the largest published checkpoint
PIXART, SD3, CLASS_DIT = "PixArtTransformer2DModel", "SD3Transformer2DModel", "DiTTransformer2DModel"
# older folders say what they hold by the norm alone
OLD_CLASS, CLASS_OF_NORM = "Transformer2DModel", {"ada_norm_single": PIXART, "ada_norm_zero": CLASS_DIT}


@dataclass(frozen=True, slots=True)
class Part:
    """A folder of a checkpoint that holds weights: `kind` is a key of `safelight.models.inspection.expected_tensors.PART_KINDS`."""

    folder: str
    kind: str
    tokenizer: str | None = None  # the folder of its tokenizer
    is_optional: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """The checkpoints of one architecture: how one is recognised, what it is made of, how it is served when nothing is asked for."""

    name: str
    pipeline: str  # `_class_name` of its model_index.json
    mark: str  # what tells it from others with that class, in words
    has_mark: Callable[[Path], bool]
    network: str  # class of its transformer
    parts: tuple[Part, ...]
    text: str  # what reads the prompt, in words
    num_steps: int
    guidance_scale: float
    solver: str
    schedule: str  # in words, of the published checkpoints; a folder's own scheduler_config.json decides, its shift included
    sides: tuple[
        int, ...
    ]  # in pixels, of the published checkpoints' native squares; a folder's own configs decide
    has_buckets: bool  # trained at BUCKETS too, not at the square alone
    licence: str  # of the published weights
    origin: tuple[str, ...]  # Hugging Face repositories of the published ones
    bare_sides: tuple[int, ...] = ()  # native sides at which there are no buckets all the same
    sample_size: int = 128  # where transformer/config.json does not say
    has_classes: bool = False  # a prompt is one of the labels in model_index.json
    text_tokens: int | None = None  # that T5 reads, where the family decides it
    timestep_spacing: str = "trailing"
    extra: str | None = None  # of the package, beside what serving needs anyway


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that can be served: a folder, the family it belongs to and the sizes that it draws, the native one first."""

    id: str
    folder: Path
    family: Family
    sizes: tuple[Size, ...]
    licence: str


@dataclass(frozen=True, slots=True)
class Embedded:
    """What is known of an embedded model beyond its folder."""

    licence: str
    more_sizes: tuple[Size, ...] = ()  # served beside the native square


def _has_clip(folder: Path) -> bool:
    return (folder / "text_encoder" / CLIP_CONFIG).exists()


def _has_t5(folder: Path) -> bool:
    return _class_of(folder, "text_encoder") == "T5EncoderModel"


def _is_dual(folder: Path) -> bool:
    return bool(_transformer(folder).get("dual_attention_layers"))


def _is_normed(folder: Path) -> bool:
    return _transformer(folder).get("qk_norm") is not None and not _is_dual(folder)


def _is_plain(folder: Path) -> bool:
    return _transformer(folder).get("qk_norm") is None and not _is_dual(folder)


NETWORK, VAE = Part("transformer", "network"), Part("vae", "vae")
T5 = Part("text_encoder", "t5", "tokenizer")
THREE_ENCODERS = (
    Part("text_encoder", "clip", "tokenizer"),
    Part("text_encoder_2", "clip", "tokenizer_2"),
    Part("text_encoder_3", "t5", "tokenizer_3", is_optional=True),
)
THREE_ENCODERS_IN_WORDS = (
    "CLIP-L and OpenCLIP bigG, 77 tokens; T5-XXL, 256 tokens, zeros in its place when absent"
)
STABILITY = "Stability AI Community License"

# The first that claims a folder has it.
FAMILIES = (
    Family(
        name="pixart-clip",
        pipeline="PixArtSigmaPipeline",
        mark="with an open_clip text_encoder",
        has_mark=_has_clip,
        network=PIXART,
        parts=(Part("text_encoder", "open_clip"), NETWORK, VAE),
        text="an open_clip text tower",
        # docs/solvers.md: of the solvers never worse than Euler from ten evaluations on, dpmpp_2m and unipc_2 are the most exact, and
        # as good as each other on 150 names with earlier weights; of the scales 3, 5 and 7 none is surely better on them, and 5 was highest
        num_steps=20,
        guidance_scale=5.0,
        solver="dpmpp_2m",
        schedule="flow",
        sides=(128,),
        has_buckets=False,
        licence="Apache-2.0",
        origin=(),
    ),
    Family(
        name="pixart-alpha",
        pipeline="PixArtAlphaPipeline",
        mark="with a T5 text_encoder",
        has_mark=_has_t5,
        network=PIXART,
        parts=(T5, NETWORK, VAE),
        text="T5-XXL, 120 tokens",
        text_tokens=120,
        num_steps=20,
        guidance_scale=4.5,
        solver="dpmpp_2m",
        schedule="noise prediction, linear betas",
        sides=(1024, 512),
        has_buckets=True,
        bare_sides=(512,),
        licence="CreativeML Open RAIL++-M",
        origin=("PixArt-alpha/PixArt-XL-2-1024-MS", "PixArt-alpha/PixArt-XL-2-512x512"),
        extra="t5",
    ),
    Family(
        name="pixart-sigma",
        pipeline="PixArtSigmaPipeline",
        mark="with a T5 text_encoder",
        has_mark=_has_t5,
        network=PIXART,
        parts=(T5, NETWORK, VAE),
        text="T5-XXL, 300 tokens",
        text_tokens=300,
        num_steps=20,
        guidance_scale=4.5,
        solver="dpmpp_2m",
        schedule="noise prediction, linear betas",
        sides=(1024, 512),
        has_buckets=True,
        licence="CreativeML Open RAIL++-M",
        origin=("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "PixArt-alpha/PixArt-Sigma-XL-2-512-MS"),
        extra="t5",
    ),
    Family(
        name="sd3",
        pipeline="StableDiffusion3Pipeline",
        mark="without qk_norm",
        has_mark=_is_plain,
        network=SD3,
        parts=(*THREE_ENCODERS, NETWORK, VAE),
        text=THREE_ENCODERS_IN_WORDS,
        num_steps=28,
        guidance_scale=7.0,
        solver="euler",
        schedule="flow, shift 3",
        timestep_spacing="linspace",
        sides=(1024,),
        has_buckets=True,
        licence=STABILITY,
        origin=("stabilityai/stable-diffusion-3-medium-diffusers",),
        extra="t5",
    ),
    Family(
        name="sd3.5-medium",
        pipeline="StableDiffusion3Pipeline",
        mark="with dual_attention_layers",
        has_mark=_is_dual,
        network=SD3,
        parts=(*THREE_ENCODERS, NETWORK, VAE),
        text=THREE_ENCODERS_IN_WORDS,
        num_steps=40,
        guidance_scale=4.5,
        solver="euler",
        schedule="flow, shift 3",
        timestep_spacing="linspace",
        sides=(1024,),
        has_buckets=True,
        licence=STABILITY,
        origin=("stabilityai/stable-diffusion-3.5-medium",),
        extra="t5",
    ),
    Family(
        name="sd3.5-large",
        pipeline="StableDiffusion3Pipeline",
        mark="with qk_norm",
        has_mark=_is_normed,
        network=SD3,
        parts=(*THREE_ENCODERS, NETWORK, VAE),
        text=THREE_ENCODERS_IN_WORDS,
        num_steps=28,
        guidance_scale=3.5,
        solver="euler",
        schedule="flow, shift 3",
        timestep_spacing="linspace",
        sides=(1024,),
        has_buckets=True,
        licence=STABILITY,
        origin=("stabilityai/stable-diffusion-3.5-large", "stabilityai/stable-diffusion-3.5-large-turbo"),
        extra="t5",
    ),
    Family(
        name="dit",
        pipeline="DiTPipeline",
        mark="",
        has_mark=lambda folder: True,
        network=CLASS_DIT,
        parts=(NETWORK, VAE),
        text="an ImageNet class, by name or number",
        num_steps=25,
        guidance_scale=4.0,
        solver="dpmpp_2m",
        schedule="noise prediction, linear betas",
        sides=(256, 512),
        has_buckets=False,
        licence="CC-BY-NC-4.0",
        origin=("facebook/DiT-XL-2-256", "facebook/DiT-XL-2-512"),
        sample_size=32,
        has_classes=True,
    ),
)

EMBEDDED = {
    "emoji-128": Embedded(
        licence="weights: Apache-2.0; trained on Fluent Emoji (MIT) and Noto Emoji (Apache-2.0)",
        more_sizes=(),
    ),
}
TINY = "tiny"  # random weights, drawn from a fixed seed: for tests of everything but the images


def find_checkpoint(name_or_dir: str) -> Checkpoint:
    """An embedded model by its name, `tiny`, or any folder; raise `CheckpointError` saying what is wrong and what there is."""
    folder = find_folder(name_or_dir)
    family = recognise(folder)
    embedded = EMBEDDED.get(name_or_dir) or Embedded(
        "none: random weights" if name_or_dir == TINY else "see the folder"
    )
    model_id = name_or_dir if name_or_dir in (*EMBEDDED, TINY) else folder.name
    return Checkpoint(
        model_id, folder, family, (*list_sizes(family, folder), *embedded.more_sizes), embedded.licence
    )


def find_folder(name_or_dir: str) -> Path:
    """Where a model lies, whatever is in there; raise `CheckpointError` if it is neither known nor a folder."""
    if name_or_dir == TINY:
        from safelight.models.tiny import ensure_tiny  # torch, only where it is asked for

        return ensure_tiny()
    if name_or_dir in EMBEDDED:
        return WEIGHTS_FOLDER / name_or_dir
    folder = Path(name_or_dir).expanduser()
    if folder.is_file():
        raise CheckpointError(
            f"model {name_or_dir!r} is a file, a checkpoint is a folder with a model_index.json"
        )
    if not folder.is_dir():
        raise CheckpointError(
            f"model {name_or_dir!r} is neither a folder nor one of {', '.join((*EMBEDDED, TINY))}"
        )
    return folder.resolve()


def recognise(folder: Path) -> Family:
    """The family of `folder`, by its `model_index.json` and what that leaves open; raise `CheckpointError` if none claims it."""
    pipeline = read_json(folder / "model_index.json").get("_class_name")
    for family in FAMILIES:
        if family.pipeline == pipeline and family.has_mark(folder):
            return family
    supported = ", ".join(dict.fromkeys(f"{family.pipeline} {family.mark}".strip() for family in FAMILIES))
    raise CheckpointError(f"{folder}: {pipeline!r} with these parts is not supported; supported: {supported}")


def list_sizes(family: Family, folder: Path) -> tuple[Size, ...]:
    """What the checkpoint in `folder` draws: its native square, then the buckets that are whole patches and have positions.

    Raises `CheckpointError` for a native square that is not, or has not, or is beyond what anybody trains.
    """
    transformer = _transformer(folder)
    compression = spatial_compression(read_json(folder / "vae" / "config.json"))
    side = _number(transformer, "sample_size", family.sample_size) * compression
    patch = _number(transformer, "patch_size", 2) * compression  # in pixels
    longest = (
        _number(transformer, "pos_embed_max_size", UNBOUNDED) * patch
    )  # a table of positions, where there is one
    if side % patch or side > min(longest, LONGEST_SIDE):
        raise CheckpointError(
            f"transformer/config.json: sample_size stands for images of {side} x {side} pixels; "
            f"a side is a multiple of {patch} and at most {min(longest, LONGEST_SIDE)}"
        )
    has_buckets = family.has_buckets and side not in family.bare_sides
    scaled = (
        [(width * side / BUCKET_SIDE, height * side / BUCKET_SIDE) for width, height in BUCKETS]
        if has_buckets
        else []
    )
    kept = [size for size in scaled if max(size) <= longest and not any(length % patch for length in size)]
    return ((side, side), *((int(width), int(height)) for width, height in kept))


def spatial_compression(vae_config: dict[str, Any]) -> int:
    """How many pixels on a side one latent pixel stands for."""
    channels = vae_config.get("block_out_channels") or vae_config.get("decoder_block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise CheckpointError(
            f"vae/config.json: block_out_channels is {channels!r}, expected a list of numbers of channels"
        )
    return int(2 ** (len(channels) - 1))


def network_class(config: dict[str, Any]) -> Any:
    """The class that a transformer's `config.json` is of, by its present name; None if it does not say."""
    name = config.get("_class_name")
    return CLASS_OF_NORM.get(str(config.get("norm_type")), name) if name == OLD_CLASS else name


def tiny_folder() -> Path:
    """Where the `tiny` preset lies once `safelight.models.tiny.ensure_tiny` has written it: one folder a user and format."""
    return Path(tempfile.gettempdir()) / f"safelight-{TINY}-v2-{os.getuid()}"


def _class_of(folder: Path, part: str) -> str | None:
    """The class that `model_index.json` names for `part`, where `[null, null]` stands for what is left out."""
    entry = read_json(folder / "model_index.json").get(part)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def _transformer(folder: Path) -> dict[str, Any]:
    return read_json(folder / "transformer" / "config.json")


def _number(config: dict[str, Any], key: str, default: int) -> int:
    value = config.get(key)
    if value is None:
        return default
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"transformer/config.json: {key} is {value!r}, expected a positive whole number"
        )
    return value
