"""Checks of a device and a model that need no image: weights, attention, torch.compile, the network."""

import platform
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from safelight.models.denoisers import example_text, load_network, pack, read_config
from safelight.models.packed.attention import BACKENDS
from safelight.models.packed.attention_choice import select_attention
from safelight.models.packed.attention_probe import TOLERANCE, largest_error
from safelight.pipeline.assembly.check import check_folder
from safelight.pipeline.assembly.device import fast_device, fast_dtype
from safelight.pipeline.catalog.model_info import ModelInfo

MIN_COSINE = {"none": 0.999, "int8": 0.99}


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check. `is_sound` is None if the check only informs."""

    name: str
    is_sound: bool | None
    message: str

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {"name": self.name, "is_sound": self.is_sound, "says": self.message}


def failed_check(name: str, error: Exception) -> CheckResult:
    """The result of a check that raised `error`."""
    return CheckResult(name, False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def check_device() -> CheckResult:
    """The device, its threads and its dtype. Only informs."""
    device = fast_device()
    dtype = str(fast_dtype()).removeprefix("torch.")
    if device.type == "cuda":
        name, threads = torch.cuda.get_device_name(device), ""
    else:
        name = platform.processor() or platform.machine()
        threads = f", {torch.get_num_threads()} threads"
    return CheckResult("device", None, f"{device.type}, {name}{threads}, {dtype}, torch {torch.__version__}")


def check_weights(model: ModelInfo) -> CheckResult:
    """Whether the folder holds the tensors that its configurations ask for."""
    report = check_folder(str(model.path), model.read_options)
    num_tensors = sum(sum(part.dtypes.values()) for part in report.parts)
    message = "; ".join(report.faults) or f"{num_tensors} tensors match the configurations"
    return CheckResult("weights", not report.faults, message)


def check_attention(model: ModelInfo) -> CheckResult:
    """Whether every attention back end agrees with the plain one on rows of several lengths."""
    config: Any = read_config(model.path / "transformer", model.read_options)  # every family has heads
    heads, channels = config.num_attention_heads, config.attention_head_dim
    device, dtype = fast_device(), fast_dtype()
    selected, reason = select_attention(device, dtype, heads, channels)
    errors = {
        backend.name: largest_error(backend, device, dtype, heads, channels)
        for backend in (*BACKENDS.values(), selected)
    }
    listed = ", ".join(f"{name} {error:.1e}" for name, error in errors.items() if name != "plain")
    is_sound = all(error < TOLERANCE for error in errors.values())  # false for NaN
    message = f"{selected.name}, because {reason}; largest error against plain attention: {listed}"
    return CheckResult("attention", is_sound, message)


def check_compile(_: ModelInfo) -> CheckResult:
    """Whether torch.compile works, by a real call: it needs a C++ compiler, or Triton. Only informs."""
    x = torch.ones(8, device=fast_device())
    try:
        is_equal = bool(torch.equal(torch.compile(lambda x: x.sin() + 1)(x), x.sin() + 1))
    except Exception as error:
        return CheckResult("compile", None, f"not available: {' '.join(str(error).split())[:120]}")
    return CheckResult("compile", None, "available" if is_equal else "computes other numbers than eager mode")


def check_network(model: ModelInfo, quantization: str) -> CheckResult:
    """Whether one evaluation of the served network agrees with the plain network in float32 on the CPU."""
    config: Any = read_config(model.path / "transformer", model.read_options)
    states, mask, pooled = example_text(config)
    states = states * torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    x = torch.randn(
        1,
        config.in_channels,
        config.sample_size,
        config.sample_size,
        generator=torch.Generator().manual_seed(2),
    )
    example = _Example(x, states, mask, pooled, (model.native_size[1], model.native_size[0]))
    with torch.inference_mode():
        expected = _predict_plain(model, example)
        prediction = _predict_served(model, example, quantization)
    cosine = float(cosine_similarity(prediction.flatten(), expected.flatten(), dim=0))
    return CheckResult(
        "network",
        cosine >= MIN_COSINE[quantization],
        f"cosine similarity {cosine:.6f} with the plain network in float32 on the CPU",
    )


@dataclass(frozen=True, slots=True)
class _Example:
    """Inputs of one evaluation: latents (1, C, H, W), text (L, width), its mask, its pooled vector."""

    x: Tensor
    states: Tensor
    mask: Tensor
    pooled: Tensor | None
    size: tuple[int, int]  # (height, width) in pixels
    timestep: float = 500.0


def _predict_plain(model: ModelInfo, example: _Example) -> Tensor:
    network = load_network(model.path / "transformer", "cpu", torch.float32, model.read_options)
    times = network.prepare_times(torch.tensor([example.timestep]), example.size)
    row = network.prepare_row(example.states, example.mask, example.pooled, times)
    prediction: Tensor = network.predict(example.x, network.collate([row]), [0])
    return prediction


def _predict_served(model: ModelInfo, example: _Example, quantization: str) -> Tensor:
    device, dtype = fast_device(), fast_dtype()
    plain = load_network(model.path / "transformer", str(device), dtype, model.read_options)
    network = pack(plain, quantization)
    pooled = example.pooled
    if pooled is not None:
        pooled = pooled.to(device, dtype if pooled.is_floating_point() else pooled.dtype)
    text = network.prepare_text(example.states.to(device, dtype), example.mask, pooled)
    times = network.prepare_times(torch.tensor([example.timestep]).to(device), example.size)
    height, width = example.x.shape[2:]
    rows = network.collate([network.prepare_row(text, times)], [(height, width)])
    return network.predict([example.x.to(device, dtype)], rows, [0])[0].float().cpu()
