"""From a model's name to its running parts: the composition root of the pipeline. Each part loads only its own weights."""

import torch

from models.checkpoint import fill, load_tensors
from models.config import DiTConfig
from models.dit import DiT
from models.folder import CLIP_CONFIG, CheckpointError, read_json
from models.registry import spatial_compression
from models.text import ClipTextTower
from models.vae import load_vae
from pipeline.decoder import Decoder
from pipeline.encoder import TextEncoder
from pipeline.engine import Engine
from pipeline.params import GenerationParams, ModelInfo
from pipeline.prediction import PREDICTIONS
from pipeline.runner import StepRunner
from pipeline.schedules import Flow, Schedule, VariancePreserving
from pipeline.solvers import Plan, plan

# diffusers' names of the schedules that we have, with the betas that they must start and end at
BETAS: dict[str, tuple[str, dict[str, float]]] = {
    "linear": ("linear", {"beta_start": 1e-4, "beta_end": 0.02}),
    "scaled_linear": ("scaled_linear", {"beta_start": 0.00085, "beta_end": 0.012}),
    "squaredcos_cap_v2": ("cosine", {}),
}


def build_text_encoder(model: ModelInfo, *, num_threads: int | None = None) -> TextEncoder:
    """The text tower of `model`, float32."""
    _set_threads(num_threads)
    return TextEncoder(ClipTextTower(model.path / "text_encoder"))


def build_engine(model: ModelInfo, *, max_rows: int = 16, num_threads: int | None = None, dtype: torch.dtype | None = None) -> Engine:
    """The denoiser of `model` behind an engine; `dtype` defaults to what the processor does fast."""
    _set_threads(num_threads)
    check_fit(model)
    schedule, prediction = read_schedule(model)

    def make_plan(params: GenerationParams) -> Plan:
        return plan(params.solver, schedule, prediction, params.num_steps)

    scale = spatial_compression(read_json(model.path / "vae" / "config.json"))
    return Engine(build_runner(model, dtype=dtype), make_plan, scale, max_rows)


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


def build_decoder(model: ModelInfo, *, num_threads: int | None = None, dtype: torch.dtype | None = None) -> Decoder:
    """The autoencoder of `model`."""
    _set_threads(num_threads)
    dtype = dtype or fast_dtype()
    device = fast_device()
    return Decoder(load_vae(model.path / "vae", str(device), dtype), dtype, device)


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


def read_schedule(model: ModelInfo) -> tuple[Schedule, str]:
    """Noise schedule and prediction type of a checkpoint, from its `scheduler_config.json`."""
    config = read_json(model.path / "scheduler" / "scheduler_config.json")
    prediction = config.get("prediction_type", "epsilon")
    if config.get("use_flow_sigmas") or config.get("_class_name") == "FlowMatchEulerDiscreteScheduler":
        return Flow(config.get("flow_shift", config.get("shift", 1.0))), "flow"
    if prediction not in PREDICTIONS:
        raise CheckpointError(f"{model.path}: prediction_type {prediction!r} is not supported; supported: {', '.join(PREDICTIONS)}")
    kind = config.get("beta_schedule", "linear")
    if kind not in BETAS:
        raise CheckpointError(f"{model.path}: beta_schedule {kind!r} is not supported; supported: {', '.join(BETAS)}")
    name, ends = BETAS[kind]
    wanted = {"num_train_timesteps": 1000, "trained_betas": None, "rescale_betas_zero_snr": False, **ends}
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{model.path}: {key} {config[key]!r} is not supported, only {value!r}")
    return VariancePreserving(name), prediction


def fast_device() -> torch.device:
    """The GPU that torch sees, or the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def fast_dtype() -> torch.dtype:
    """bfloat16 where the device multiplies it natively, float32 elsewhere."""
    if fast_device().type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def _set_threads(num_threads: int | None) -> None:
    if num_threads is not None:
        torch.set_num_threads(num_threads)
