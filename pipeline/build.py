"""From a model's name to its running parts: the composition root of the pipeline. Each part loads only its own weights."""

import torch

from models.checkpoint import fill, load_tensors
from models.config import DiTConfig
from models.dit import DiT
from models.folder import CheckpointError, read_json
from models.registry import spatial_compression
from models.text import ClipTextTower
from models.vae import load_vae
from pipeline.decoder import Decoder
from pipeline.encoder import TextEncoder
from pipeline.engine import Engine
from pipeline.params import GenerationParams, ModelInfo
from pipeline.runner import StepRunner
from pipeline.schedules import Flow, Schedule, VariancePreserving
from pipeline.solvers import Plan, plan


def build_text_encoder(model: ModelInfo, *, num_threads: int | None = None) -> TextEncoder:
    """The text tower of `model`, float32."""
    _set_threads(num_threads)
    return TextEncoder(ClipTextTower(model.path / "text_encoder"))


def build_engine(model: ModelInfo, *, max_rows: int = 16, num_threads: int | None = None, dtype: torch.dtype | None = None) -> Engine:
    """The denoiser of `model` behind an engine; `dtype` defaults to what the processor does fast."""
    _set_threads(num_threads)
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


def read_schedule(model: ModelInfo) -> tuple[Schedule, str]:
    """Noise schedule and prediction type of a checkpoint, from its `scheduler_config.json`."""
    config = read_json(model.path / "scheduler" / "scheduler_config.json")
    prediction = config.get("prediction_type", "epsilon")
    if config.get("use_flow_sigmas") or config.get("_class_name") == "FlowMatchEulerDiscreteScheduler":
        return Flow(config.get("flow_shift", config.get("shift", 1.0))), "flow"
    if config.get("num_train_timesteps", 1000) != 1000:
        raise CheckpointError(f"{model.path}: num_train_timesteps {config['num_train_timesteps']} is not supported, only 1000")
    kinds = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
    kind = config.get("beta_schedule", "linear")
    if kind not in kinds:
        raise CheckpointError(f"{model.path}: beta_schedule {kind!r} is not supported; supported: {', '.join(kinds)}")
    return VariancePreserving(kinds[kind]), prediction


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
