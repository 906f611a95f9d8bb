"""The denoiser of a checkpoint behind an engine."""

from functools import partial

import torch

from models.checkpoint import fill, load_tensors
from models.config import DiTConfig
from models.dit import DiT
from models.folder import CLIP_CONFIG, CheckpointError, read_json
from models.registry import spatial_compression
from pipeline.build.device import fast_device, fast_dtype, set_threads
from pipeline.engine import Engine
from pipeline.params import ModelInfo
from pipeline.planning import plan_of
from pipeline.runner import StepRunner


def build_engine(model: ModelInfo, *, max_rows: int = 16, num_threads: int | None = None, dtype: torch.dtype | None = None) -> Engine:
    """The denoiser of `model` behind an engine; `dtype` defaults to what the processor does fast."""
    set_threads(num_threads)
    check_fit(model)
    scale = spatial_compression(read_json(model.path / "vae" / "config.json"))
    return Engine(build_runner(model, dtype=dtype), partial(plan_of, model=model), scale, max_rows)


def build_runner(model: ModelInfo, *, dtype: torch.dtype | None = None) -> StepRunner:
    """The denoising network alone, its weights checked tensor by tensor."""
    dtype = dtype or fast_dtype()
    folder = model.path / "transformer"
    config = DiTConfig.from_diffusers(read_json(folder / "config.json"))
    with torch.device("meta"):
        dit = DiT(config)
    device = fast_device()
    fill(dit, load_tensors(folder, str(device), dtype), folder)
    return StepRunner(dit, dtype, device)


def check_fit(model: ModelInfo) -> None:
    """Raise `CheckpointError` if the parts of a checkpoint, each sound, do not fit together."""
    transformer = DiTConfig.from_diffusers(read_json(model.path / "transformer" / "config.json"))
    latent_channels = read_json(model.path / "vae" / "config.json").get("latent_channels", 4)
    text_width = read_json(model.path / "text_encoder" / CLIP_CONFIG)["model_cfg"]["text_cfg"]["width"]
    if transformer.in_channels != latent_channels:
        raise CheckpointError(f"{model.path}: the transformer has {transformer.in_channels} latent channels, the vae {latent_channels}")
    if transformer.caption_channels != text_width:
        raise CheckpointError(
            f"{model.path}: the transformer reads text of width {transformer.caption_channels}, the text_encoder has {text_width}"
        )
