"""The denoiser of a checkpoint behind an engine."""

from functools import partial
from pathlib import Path

import torch

from safelight.models.checkpoints.json_files import CheckpointError, read_json, spatial_compression
from safelight.models.denoisers import load_network, pack, read_config
from safelight.models.families.registry import network_class, recognise
from safelight.pipeline.assembly.device import fast_device, fast_dtype, set_threads
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.planning import plan_request
from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.engine.runner import StepRunner
from safelight.pipeline.scheduling.batcher import Limits


def build_engine(
    model: ModelInfo,
    *,
    max_rows: int = 16,
    max_tokens: int = 0,
    num_threads: int | None = None,
    dtype: torch.dtype | None = None,
    quantization: str = "none",
) -> Engine:
    """The denoiser of `model` behind an engine; `dtype` defaults to what the device does fast, `max_tokens` to `max_rows` native rows.

    What a tick costs is not measured here (`safelight.pipeline.calibration.cost_curve`).
    """
    set_threads(num_threads)
    check_fit(model.path)
    return engine_on(
        build_runner(model, dtype=dtype, quantization=quantization),
        model,
        max_rows=max_rows,
        max_tokens=max_tokens,
    )


def engine_on(runner: StepRunner, model: ModelInfo, *, max_rows: int = 16, max_tokens: int = 0) -> Engine:
    """A new engine on a network that is there already. Raises `ValueError` if `max_tokens` cannot hold an image that is served."""
    scale = spatial_compression(read_json(model.path / "vae" / "config.json"))
    side = scale * runner.network.config.patch_size
    tokens = {(width, height): (width // side) * (height // side) for width, height in model.sizes}
    width, height = max(tokens, key=lambda size: tokens[size])
    least = 2 * tokens[width, height]
    if 0 < max_tokens < least:
        raise ValueError(
            f"max_tokens must be at least {least}, for a guided image of {width}x{height}; got {max_tokens}"
        )
    return Engine(
        runner,
        partial(plan_request, model=model),
        scale,
        Limits(max_rows, max_tokens or max(max_rows * tokens[model.native_size], least)),
    )


def build_runner(
    model: ModelInfo, *, dtype: torch.dtype | None = None, quantization: str = "none"
) -> StepRunner:
    """The denoising network alone, its weights checked tensor by tensor; `quantization` as `safelight.models.denoisers.pack` has it."""
    dtype, device = dtype or fast_dtype(), fast_device()
    return StepRunner(
        pack(load_network(model.path / "transformer", str(device), dtype), quantization), dtype, device
    )


def check_fit(folder: Path) -> None:
    """Raise `CheckpointError` if the parts of the checkpoint in `folder`, each sound, do not fit together."""
    family = recognise(folder)
    transformer = read_config(folder / "transformer")
    name = network_class(read_json(folder / "transformer" / "config.json"))
    if name != family.network.class_name:
        raise CheckpointError(
            f"{folder}: the transformer is a {name}, a {family.pipeline} needs a {family.network.class_name}"
        )
    latent_channels = read_json(folder / "vae" / "config.json").get("latent_channels", 4)
    if transformer.in_channels != latent_channels:
        raise CheckpointError(
            f"{folder}: the transformer has {transformer.in_channels} latent channels, the vae {latent_channels}"
        )
    family.conditioning.check_fit(folder)
