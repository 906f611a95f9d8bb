"""Builds the engine that runs a model's denoiser."""

from functools import partial
from pathlib import Path

import torch

from safelight.models.checkpoints.json_files import CheckpointError, read_json, spatial_compression
from safelight.models.checkpoints.model_index import INDEX, is_null
from safelight.models.checkpoints.options import require
from safelight.models.checkpoints.read_options import DEFAULT_READ_OPTIONS, ReadOptions
from safelight.models.denoisers import load_network, pack, read_config
from safelight.models.families.registry import network_class, recognise
from safelight.pipeline.assembly.device import fast_device, fast_dtype, keep_precision, set_threads
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.planning import plan_request
from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.engine.runner import StepRunner
from safelight.pipeline.scheduling.batcher import Limits

# Options that autoencoders may have otherwise, and without which images would have another size or colours.
RGB_VAE = {"in_channels": 3, "out_channels": 3, "upsampling_scaling_factor": 2}


def build_engine(
    model: ModelInfo,
    *,
    max_rows: int = 16,
    max_tokens: int = 0,
    num_threads: int | None = None,
    dtype: torch.dtype | None = None,
    quantization: str = "none",
    is_compiled: bool = False,
) -> Engine:
    """An engine on the denoiser of `model`, not yet calibrated (`safelight.pipeline.calibration.cost_curve`).

    Args:
        model: The model.
        max_rows: Network rows that a tick may hold.
        max_tokens: Image tokens that a tick may hold over all rows; 0 for those of `max_rows` native rows.
        num_threads: Threads of the kernels that the calling thread runs; None leaves the number to torch.
        dtype: Of the weights; by default what the device computes fast.
        quantization: As in `safelight.models.denoisers.pack`, as is `is_compiled`.
        is_compiled: Whether the network's blocks are compiled.

    Raises:
        CheckpointError: The checkpoint cannot be loaded.
        ValueError: `max_tokens` is too small for an image that the model serves.
    """
    set_threads(num_threads)
    check_fit(model.path, model.read_options)
    runner = build_runner(model, dtype=dtype, quantization=quantization, is_compiled=is_compiled)
    return engine_on(runner, model, max_rows=max_rows, max_tokens=max_tokens)


def engine_on(runner: StepRunner, model: ModelInfo, *, max_rows: int = 16, max_tokens: int = 0) -> Engine:
    """A new engine on a loaded network; arguments and errors as in `build_engine`."""
    scale = spatial_compression(read_json(model.path / "vae" / "config.json"))
    side = scale * runner.network.config.patch_size
    tokens = {(width, height): (width // side) * (height // side) for width, height in model.sizes}
    width, height = max(tokens, key=lambda size: tokens[size])
    min_tokens = 2 * tokens[width, height]
    if 0 < max_tokens < min_tokens:
        raise ValueError(
            f"max_tokens must be at least {min_tokens}, for a guided image of {width}x{height}; "
            f"got {max_tokens}"
        )
    limits = Limits(max_rows, max_tokens or max(max_rows * tokens[model.native_size], min_tokens))
    return Engine(runner, partial(plan_request, model=model), scale, limits)


def build_runner(
    model: ModelInfo,
    *,
    dtype: torch.dtype | None = None,
    quantization: str = "none",
    is_compiled: bool = False,
) -> StepRunner:
    """The denoising network alone, its weights checked tensor by tensor; arguments as in `build_engine`."""
    dtype, device = dtype or fast_dtype(), fast_device()
    keep_precision()
    network = load_network(model.path / "transformer", str(device), dtype, model.read_options)
    return StepRunner.on(pack(network, quantization, is_compiled), dtype, device)


def check_fit(folder: Path, options: ReadOptions = DEFAULT_READ_OPTIONS) -> None:
    """Raise `CheckpointError` if the parts of a checkpoint, each valid by itself, do not fit together."""
    family = recognise(folder)
    for part in family.parts:
        if part.is_in_index and not part.is_optional and is_null(folder, part.folder):
            raise CheckpointError(
                f"{folder / INDEX} has null for {part.folder}, without which {family.name} cannot be served"
            )
    transformer = read_config(folder / "transformer", options)
    name = network_class(read_json(folder / "transformer" / "config.json"))
    if name != family.network.class_name:
        raise CheckpointError(
            f"{folder}: the transformer is a {name}, a {family.pipeline} needs a {family.network.class_name}"
        )
    vae = read_json(folder / "vae" / "config.json")
    try:
        require(vae, RGB_VAE)
    except CheckpointError as error:
        raise CheckpointError(f"{folder / 'vae'}: {error}") from None
    latent_channels = vae.get("latent_channels", 4)
    if transformer.in_channels != latent_channels:
        raise CheckpointError(
            f"{folder}: the transformer has {transformer.in_channels} latent channels, "
            f"the vae {latent_channels}"
        )
    family.conditioning.check_fit(folder)
