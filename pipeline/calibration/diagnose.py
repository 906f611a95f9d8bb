"""What this machine will do with a model, found out by doing it: the acceptance test of a device, a GPU above all.

Nothing is taken on trust: kernels are called, images are drawn, bits are compared. What fails is a finding, not an exception.
"""

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from safelight.models.denoisers import example_text, load_network, pack, read_config
from safelight.models.packed.attention import BACKENDS
from safelight.models.packed.attention_choice import select_attention
from safelight.models.packed.attention_probe import TOLERANCE, largest_error
from safelight.pipeline.assembly.check import check_folder
from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.device import fast_device, fast_dtype, set_threads
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_engine
from safelight.pipeline.calibration.cost_curve import LARGEST_ROW, TICKS, measure_curve
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.planning import plan_request
from safelight.pipeline.engine.engine import Engine, SampleOutcome
from safelight.pipeline.engine.image_decoder import InvalidImage
from safelight.pipeline.engine.runner import bucket
from safelight.pipeline.flops.denoiser import forward_flops
from safelight.pipeline.params import GenerationParams
from safelight.pipeline.scheduling.cost_curve import CostCurve

MIN_COSINE = {"none": 0.999, "int8": 0.99}
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One thing that was tried. `is_sound` is None for what is merely good to know."""

    name: str
    is_sound: bool | None
    says: str


@dataclass(frozen=True, slots=True)
class Serving:
    """What an operator decided of the denoiser."""

    num_threads: int
    max_rows: int = 16
    max_tokens: int = 0
    quantization: str = "none"


@dataclass(frozen=True, slots=True)
class Expectation:
    """What to expect of an image at the native size, with the model's own steps and guidance, by the measured curve."""

    seconds: float  # alone, all stages
    images_per_hour: float  # of full ticks, by the denoiser
    curve: CostCurve


def diagnose(model: ModelInfo, serving: Serving, say: Say) -> tuple[list[CheckResult], Expectation | None]:
    """Everything in turn, as the service would have it; no prognosis if the model cannot be drawn with."""
    set_threads(serving.num_threads)
    findings: list[CheckResult] = []
    network = partial(_network, quantization=serving.quantization)
    for name, finding in (
        ("weights", _weights),
        ("attention", _attention),
        ("compile", _compile),
        ("network", network),
    ):
        say(name)
        findings.append(_tried(name, finding, model))
    if not findings[0].is_sound:
        return findings, None
    say("images")
    try:
        drawn, prognosis = _draw(model, serving)
        return findings + drawn, prognosis
    except Exception as error:
        return [*findings, _failed("images", error)], None


def device_finding() -> CheckResult:
    """What is computed on."""
    device = fast_device()
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    return CheckResult(
        "device", None, f"{device.type}, {name}{threads}, {_short(fast_dtype())}, torch {torch.__version__}"
    )


def _tried(name: str, find: Callable[[ModelInfo], CheckResult], model: ModelInfo) -> CheckResult:
    try:
        return find(model)
    except Exception as error:
        return _failed(name, error)


def _failed(name: str, error: Exception) -> CheckResult:
    return CheckResult(name, False, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def _weights(model: ModelInfo) -> CheckResult:
    report = check_folder(str(model.path))
    tensors = sum(sum(part.dtypes.values()) for part in report.parts)
    return CheckResult(
        "weights",
        not report.faults,
        "; ".join(report.faults) or f"{tensors} tensors as the configurations want them",
    )


def _attention(model: ModelInfo) -> CheckResult:
    """The back end that is chosen, and each that there is against the plain one on rows of several lengths."""
    config: Any = read_config(model.path / "transformer")  # every family has heads
    heads, channels = config.num_attention_heads, config.attention_head_dim
    device, dtype = fast_device(), fast_dtype()
    chosen, why = select_attention(device, dtype, heads, channels)
    errors = {
        each.name: largest_error(each, device, dtype, heads, channels)
        for each in (*BACKENDS.values(), chosen)
    }
    told = ", ".join(f"{name} {error:.1e}" for name, error in errors.items() if name != "plain")
    is_sound = all(error < TOLERANCE for error in errors.values())  # which a NaN is not
    return CheckResult("attention", is_sound, f"{chosen.name}, because {why}; off the plain one by: {told}")


def _compile(_: ModelInfo) -> CheckResult:
    """Whether torch.compile works here: a real call, for it needs a C++ compiler, or Triton."""
    x = torch.ones(8, device=fast_device())
    try:
        worked = bool(torch.equal(torch.compile(lambda x: x.sin() + 1)(x), x.sin() + 1))
    except Exception as error:
        return CheckResult("compile", None, f"not available: {' '.join(str(error).split())[:120]}")
    return CheckResult("compile", None, "available" if worked else "gives other numbers")


def _network(model: ModelInfo, quantization: str) -> CheckResult:
    """One evaluation as it is served beside the plain network in float32 on the processor."""
    folder, device, dtype = model.path / "transformer", fast_device(), fast_dtype()
    config: Any = read_config(folder)
    side = config.sample_size
    states, mask, pooled = example_text(config)
    states = states * torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    x = torch.randn(1, config.in_channels, side, side, generator=torch.Generator().manual_seed(2))
    size, timesteps = (model.native_size[1], model.native_size[0]), torch.tensor([500.0])

    plain = load_network(folder, "cpu", torch.float32)
    with torch.inference_mode():
        row = plain.prepare_row(states, mask, pooled, plain.prepare_times(timesteps, size))
        wanted = plain.predict(x, plain.collate([row]), [0])
        del plain
        packed = pack(load_network(folder, str(device), dtype), quantization)
        pooled = (
            pooled
            if pooled is None
            else pooled.to(device, dtype if pooled.is_floating_point() else pooled.dtype)
        )
        text = packed.prepare_text(states.to(device, dtype), mask.to(device), pooled)
        rows = packed.collate(
            [packed.prepare_row(text, packed.prepare_times(timesteps.to(device), size))], [(side, side)]
        )
        found = packed.predict([x.to(device, dtype)], rows, [0])[0].float().cpu()
    cosine = float(cosine_similarity(found.flatten(), wanted.flatten(), dim=0))
    return CheckResult(
        "network",
        cosine >= MIN_COSINE[quantization],
        f"cosine {cosine:.6f} with the plain network in float32 on the processor",
    )


def _draw(model: ModelInfo, serving: Serving) -> tuple[list[CheckResult], Expectation]:
    """An image alone, the same in company, and how long one takes."""
    encoder, decoder = build_text_encoder(model), build_decoder(model)
    engine = build_engine(
        model, max_rows=serving.max_rows, max_tokens=serving.max_tokens, quantization=serving.quantization
    )
    engine = engine.calibrated(measure_curve(engine, model))
    width, height = model.native_size
    prompt = "0" if model.labels else "a red apple"
    other = (
        "1"
        if model.labels
        else "a long text about a green car on a blue road with many more words than sixteen, far too many of them"
    )
    params = GenerationParams(prompt, "", width, height, TICKS, model.guidance_scale, model.solver, seed=1)
    cond, uncond, long = encoder.encode([prompt, "", other])

    def latents(company: int) -> torch.Tensor:
        """Of the first of several that differ in steps, guidance, size and text."""
        for number in range(company + 1):
            width, height = model.sizes[number % len(model.sizes)]
            scale = (model.guidance_scale, 1.0, 7.0)[number % 3]
            one = replace(
                params,
                width=width,
                height=height,
                num_steps=TICKS + number % 2,
                guidance_scale=scale,
                seed=1 + number,
            )
            engine.add(str(number), one, long if number % 2 else cond, uncond)
        left = {outcome.request_id: outcome for outcome in _drain(engine)}
        if left["0"].latents is None:
            raise RuntimeError(str(left["0"].error))
        return left["0"].latents

    alone = latents(0)
    is_small = engine.row_flops(width, height) < LARGEST_ROW or engine.device.type != "cpu"
    company = engine.limits.max_rows // 2 - 1 if is_small else 1
    is_same = torch.equal(alone, latents(company))
    image, pace = decoder.decode([alone])[0], decoder.decode([alone])[0]
    is_promised = engine.device.type == "cpu"  # elsewhere the service says `batch_invariant: false`
    findings = [
        CheckResult(
            "neighbours",
            is_same or (False if is_promised else None),
            f"an image's bits {'are the same' if is_same else 'differ'} alone and among {company} others",
        ),
        CheckResult(
            "image",
            not isinstance(image, InvalidImage),
            "drawn" if not isinstance(image, InvalidImage) else str(image),
        ),
    ]
    curve = (
        engine.curve
    )  # after these images: of a network too large to be measured at the start they are all that is known
    ticks = plan_request(replace(params, num_steps=model.num_steps), model).nfe
    texts = (cond, uncond) if model.guidance_scale != 1.0 else (cond,)
    tick = sum(
        forward_flops(engine.config, alone.shape[1], alone.shape[2], bucket(text.mask)) for text in texts
    )
    decoding = 0.0 if isinstance(pace, InvalidImage) else pace[1].device_seconds
    seconds = cond.cost.device_seconds + ticks * curve.seconds_for(tick) + decoding
    most = min(engine.limits.max_rows * tick / len(texts), curve.best_work)
    return findings, Expectation(seconds, 3600 * most / curve.seconds_for(most) / (ticks * tick), curve)


def _drain(engine: Engine) -> Iterator[SampleOutcome]:
    while engine.has_work:
        yield from engine.step()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
