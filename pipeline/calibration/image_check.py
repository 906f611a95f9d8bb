"""Checks that a model generates an image, the same alone and in a batch, and measures how long one takes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_engine
from safelight.pipeline.calibration.checks import CheckResult
from safelight.pipeline.calibration.cost_curve import LARGEST_ROW, TICKS, measure_curve
from safelight.pipeline.calibration.curve_json import curve_as_dict
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.planning import plan_request
from safelight.pipeline.engine.engine import Engine, SampleOutcome
from safelight.pipeline.engine.image_decoder import InvalidImage
from safelight.pipeline.engine.runner import padded_length
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.flops.denoiser import forward_flops
from safelight.pipeline.params import GenerationParams
from safelight.pipeline.scheduling.cost_curve import CostCurve

LONG_PROMPT = (
    "a long text about a green car on a blue road with many more words than sixteen, far too many of them"
)


@dataclass(frozen=True, slots=True)
class DenoiserOptions:
    """How the service runs its denoiser."""

    num_threads: int
    max_rows: int = 16
    max_tokens: int = 0
    quantization: str = "none"


@dataclass(frozen=True, slots=True)
class Expectation:
    """Expected speed of images of the default size, with the default steps and guidance."""

    seconds: float  # latency of an image alone, all stages
    images_per_hour: float  # throughput of the denoiser in full ticks
    curve: CostCurve

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "seconds": self.seconds,
            "images_per_hour": self.images_per_hour,
            "curve": curve_as_dict(self.curve),
        }


def check_images(model: ModelInfo, options: DenoiserOptions) -> tuple[list[CheckResult], Expectation]:
    """Generate one image alone and in a batch, decode it, and forecast latency and throughput.

    Raises `RuntimeError` if the engine fails to generate it.
    """
    encoder, decoder = build_text_encoder(model), build_decoder(model)
    engine = build_engine(
        model,
        max_rows=options.max_rows,
        max_tokens=options.max_tokens,
        quantization=options.quantization,
    )
    engine = engine.calibrated(measure_curve(engine, model))
    prompts = ("0", "", "1") if model.labels else ("a red apple", "", LONG_PROMPT)
    width, height = model.default_size
    params = GenerationParams(
        prompts[0], "", width, height, TICKS, model.guidance_scale, model.solver, seed=1
    )
    image = _ExampleImage(engine, model, params, *encoder.encode(list(prompts)))
    latents = image.generate(num_batch_mates=0)
    invariance = image.check_batch_invariance(latents)
    decoded, decoded_again = decoder.decode([latents])[0], decoder.decode([latents])[0]
    is_decoded = not isinstance(decoded, InvalidImage)
    image_result = CheckResult("image", is_decoded, "drawn" if is_decoded else str(decoded))
    # The second run is timed: the first one warms up.
    decode_seconds = 0.0 if isinstance(decoded_again, InvalidImage) else decoded_again[1].device_seconds
    return [invariance, image_result], image.expect(latents, decode_seconds)


@dataclass(frozen=True, slots=True)
class _ExampleImage:
    """An image, and an engine without other work that generates it."""

    engine: Engine
    model: ModelInfo
    params: GenerationParams
    cond: TextStates
    uncond: TextStates
    other_text: TextStates  # of another length, for batch-mates

    def generate(self, num_batch_mates: int) -> torch.Tensor:
        """Its latents (C, H, W), generated with batch-mates that differ in steps, guidance, size and text.

        Raises `RuntimeError` if the engine fails.
        """
        for number in range(num_batch_mates + 1):
            width, height = self.model.sizes[number % len(self.model.sizes)]
            sample_params = replace(
                self.params,
                width=width,
                height=height,
                num_steps=TICKS + number % 2,
                guidance_scale=(self.model.guidance_scale, 1.0, 7.0)[number % 3],
                seed=1 + number,
            )
            text = self.other_text if number % 2 else self.cond
            self.engine.add(str(number), sample_params, text, self.uncond)
        outcomes = {outcome.request_id: outcome for outcome in _drain(self.engine)}
        latents = outcomes["0"].latents
        if latents is None:
            raise RuntimeError(str(outcomes["0"].error))
        return latents

    def check_batch_invariance(self, alone: torch.Tensor) -> CheckResult:
        """Whether its latents in a batch have the same bits as `alone` (C, H, W)."""
        engine = self.engine
        is_cpu = engine.device.type == "cpu"
        row_flops = engine.row_flops(self.params.width, self.params.height)
        num_batch_mates = engine.limits.max_rows // 2 - 1 if row_flops < LARGEST_ROW or not is_cpu else 1
        is_same = torch.equal(alone, self.generate(num_batch_mates))
        return CheckResult(
            "neighbours",
            # On other devices the service reports `batch_invariant: false`, so a difference only informs.
            is_same or (False if is_cpu else None),
            f"bits are {'the same' if is_same else 'different'} alone and with {num_batch_mates} batch-mates",
        )

    def expect(self, latents: torch.Tensor, decode_seconds: float) -> Expectation:
        """A forecast by the engine's cost curve, which the images generated so far have corrected.

        For a network too large to be measured at the start, these images are all that is known.
        `latents` (C, H, W) give the size; `decode_seconds` is the time to decode one image.
        """
        engine, model = self.engine, self.model
        curve = engine.curve
        num_ticks = plan_request(replace(self.params, num_steps=model.num_steps), model).nfe
        rows = (self.cond, self.uncond) if model.guidance_scale != 1.0 else (self.cond,)
        _, height, width = latents.shape
        tick_flops = sum(
            forward_flops(engine.config, height, width, padded_length(text.mask)) for text in rows
        )
        denoise_seconds = num_ticks * curve.seconds_for(tick_flops)
        seconds = self.cond.cost.device_seconds + denoise_seconds + decode_seconds
        full_flops = min(engine.limits.max_rows * tick_flops / len(rows), curve.best_work)
        images_per_hour = 3600 * full_flops / curve.seconds_for(full_flops) / (num_ticks * tick_flops)
        return Expectation(seconds, images_per_hour, curve)


def _drain(engine: Engine) -> Iterator[SampleOutcome]:
    while engine.has_work:
        yield from engine.step()
