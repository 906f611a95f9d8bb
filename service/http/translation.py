"""Translates requests into generation parameters, and results into responses with their usage."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from safelight.pipeline.catalog.model_info import (
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
    MIN_STEPS,
    ModelInfo,
    applied_guidance_scale,
    check_params,
)
from safelight.pipeline.catalog.planning import plan_request
from safelight.pipeline.params import GenerationParams
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.service.backend import STAGES
from safelight.service.errors import InvalidRequest, StageFailed
from safelight.service.http.reading.model_names import ModelNames
from safelight.service.http.reading.quality import steps_of
from safelight.service.http.schemas import (
    MAX_IMAGES,
    Adjustment,
    Cost,
    Curve,
    Curves,
    Edit,
    ImageRequest,
    InputTokens,
    Model,
    Moderation,
    OutputTokens,
    Quality,
    QualitySynonym,
    StageSeconds,
    Usage,
)
from safelight.service.messages import DecodeResult, ImageFormat, ImageUsage, StageStatus
from safelight.service.settings import Settings
from safelight.service.usage.records import NO_PROMISE, NOTHING_STORED, Promise, StoreUsage

Value = TypeVar("Value")


def make_params(request: ImageRequest, model: ModelInfo) -> list[GenerationParams]:
    """The parameters of each image, with every default filled in.

    Raises `InvalidParams`, `InvalidRequest` or `ModelNotFound`.
    """
    if request.model is not None:
        ModelNames(model).find(request.model, is_strict=True)
    width, height = parse_size(request.size or "auto", model)
    seed = _or_default(request.seed, random_seed())
    start, end = _or_default(request.guidance_interval, [0.0, 1.0])
    images = [
        GenerationParams(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt or "",
            width=width,
            height=height,
            num_steps=_or_default(request.num_inference_steps, model.num_steps),
            guidance_scale=applied_guidance_scale(
                float(_or_default(request.guidance_scale, model.guidance_scale))
            ),
            solver=_or_default(request.solver, model.solver),
            seed=seed,
            image_index=index,
            timestep_spacing=_or_default(request.timestep_spacing, model.timestep_spacing),
            eta=_or_default(request.eta, 0.0),
            guidance_interval=(start, end),
            guidance_stride=_or_default(request.guidance_stride, 1),
            guidance_rescale=_or_default(request.guidance_rescale, 0.0),
        )
        for index in range(_or_default(request.n, 1))
    ]
    if request.num_inference_steps is None and request.quality is not None:
        steps = _steps_of_quality(request.quality, images[0], model)
        images = [replace(image, num_steps=steps) for image in images]
    check_params(images[0], model)  # the images differ in image_index only
    plan_request(images[0], model)  # refuses too few steps for the solver before any stage has worked
    return images


def _steps_of_quality(quality: Quality | QualitySynonym, params: GenerationParams, model: ModelInfo) -> int:
    def check(num_steps: int) -> None:
        plan_request(replace(params, num_steps=num_steps), model)

    return min(steps_of(quality, model.num_steps, check), model.max_steps)


def make_output(request: ImageRequest) -> ImageFormat:
    """The file format of the images."""
    return ImageFormat(
        _or_default(request.output_format, "png"), _or_default(request.output_compression, 100)
    )


def make_usage(
    results: Sequence[DecodeResult],
    images: Sequence[GenerationParams],
    model: ModelInfo,
    seconds: float,
    adjustments: Sequence[Adjustment] = (),
    store: StoreUsage = NOTHING_STORED,
    promise: Promise = NO_PROMISE,
) -> Usage:
    """The usage of one request; the command line prints it too.

    Args:
        results: The finished images.
        images: Their parameters.
        model: The model that drew them.
        seconds: Since the request's arrival.
        adjustments: What was read in another way than it was written.
        store: What storing the images cost.
        promise: What was promised.
    """
    usages = [result.usage for result in results]
    text_tokens = sum(usage.text.num_tokens for usage in usages)
    image_tokens = sum(usage.image_tokens for usage in usages)
    source_tokens = usages[0].image_tokens if usages[0].source else 0  # it has the size of the images
    first = images[0]
    cost = Cost(
        model=model.id,
        seeds=[params.seed for params in images],
        solver=first.solver,
        num_inference_steps=first.num_steps,
        guidance_scale=first.guidance_scale,
        timestep_spacing=first.timestep_spacing,
        eta=first.eta,
        guidance_interval=first.guidance_interval,
        guidance_stride=first.guidance_stride,
        guidance_rescale=first.guidance_rescale,
        edit=_describe_edit(first, usages[0]),
        previews=sum(len(usage.previews) for usage in usages),
        nfe=sum(usage.denoise.nfe for usage in usages),
        rows=sum(usage.denoise.rows for usage in usages),
        flops=sum(usage.flops for usage in usages),
        device_seconds=_device_seconds(usages),
        queue_seconds=sum(usage.queue_seconds for usage in usages),
        seconds=seconds,
        promised_seconds=promise.promised_seconds,
        forecast_seconds=promise.forecast_seconds,
        store_seconds=store.seconds,
        stored_bytes=store.num_bytes,
        truncated=any(usage.text.truncated for usage in usages),
        batch_invariant=all(usage.denoise.is_batch_invariant for usage in usages),
        unknown_words=list(dict.fromkeys(word for usage in usages for word in usage.text.unknown_words)),
        prompt_syntax=list(dict.fromkeys(mark for usage in usages for mark in usage.text.prompt_syntax)),
        corrected_words=dict(pair for usage in usages for pair in usage.text.corrected_words),
        adjusted=list(adjustments),
    )
    return Usage(
        input_tokens=text_tokens + source_tokens,
        input_tokens_details=InputTokens(text_tokens=text_tokens, image_tokens=source_tokens),
        output_tokens=image_tokens,
        output_tokens_details=OutputTokens(image_tokens=image_tokens),
        total_tokens=text_tokens + source_tokens + image_tokens,
        safelight=cost,
    )


def _device_seconds(usages: Sequence[ImageUsage]) -> StageSeconds:
    stages = [usage.stages for usage in usages]
    return StageSeconds(**{stage: sum(costs[stage].device_seconds for costs in stages) for stage in STAGES})


def _describe_edit(params: GenerationParams, usage: ImageUsage) -> Edit | None:
    """What became of the source, if the request was for edits."""
    if params.edit is None or usage.source is None:
        return None
    source = usage.source
    return Edit(
        strength=params.edit.strength,
        inpainting=params.edit.is_inpainting,
        steps_taken=params.steps_taken,
        uploaded_size=f"{source.uploaded[0]}x{source.uploaded[1]}",
        crop=source.crop,
        device_seconds=source.cost.device_seconds,
    )


def describe_curves(stages: Mapping[str, StageStatus | None], model: ModelInfo, settings: Settings) -> Curves:
    """The cost curve of each stage, and the limits of a tick.

    Raises `StageFailed` while the denoiser has not measured its own curve.
    """
    curves = {
        stage: _curve(status.curve)
        for stage, status in stages.items()
        if status is not None and status.curve is not None
    }
    if "denoise" not in curves:
        raise StageFailed("The denoiser has not measured itself yet.")
    return Curves(
        model=model.id,
        max_rows=settings.max_rows,
        max_tokens=settings.max_tokens,
        encode=curves.get("encode"),
        denoise=curves["denoise"],
        decode=curves.get("decode"),
    )


def _curve(curve: CostCurve) -> Curve:
    return Curve(work_flops=list(curve.work), seconds=list(curve.seconds), factor=curve.slowdown)


def describe_moderation(settings: Settings) -> Moderation:
    """What is filtered."""
    return Moderation(prompts=bool(settings.denied_words_file), images=bool(settings.image_classifier))


def describe_model(model: ModelInfo, names: ModelNames, created: int, attention: str | None) -> Model:
    """OpenAI's model object.

    Args:
        model: The model.
        names: The names of all models.
        created: Unix time since when it is served.
        attention: Its denoiser's attention back end, if that has reported it.
    """
    return Model(
        id=model.id,
        created=created,
        licence=model.licence,
        aliases=[name for name in names.listed_for(model) if name != model.id],
        sizes=size_names(model),
        solvers=list(model.solvers),
        timestep_spacings=list(model.spacings),
        defaults=describe_defaults(model),
        edits=model.has_edits,
        attention=attention,
        limits={
            "prompt": [1, MAX_PROMPT_CHARACTERS],
            "n": [1, MAX_IMAGES],
            "num_inference_steps": [MIN_STEPS, model.max_steps],
            "guidance_scale": list(model.guidance_range),
            "seed": [0, MAX_SEED],
        },
    )


def describe_defaults(model: ModelInfo) -> dict[str, str | int | float]:
    """What a request gets that does not say, by its fields."""
    width, height = model.default_size
    return {
        "size": f"{width}x{height}",
        "num_inference_steps": model.num_steps,
        "guidance_scale": model.guidance_scale,
        "solver": model.solver,
        "timestep_spacing": model.timestep_spacing,
    }


def size_names(model: ModelInfo) -> list[str]:
    """The model's sizes as `WIDTHxHEIGHT`, the native size first."""
    return [f"{width}x{height}" for width, height in model.sizes]


def parse_size(text: str, model: ModelInfo) -> tuple[int, int]:
    """Width and height of `WIDTHxHEIGHT` or `auto`, in pixels. Raises `InvalidRequest`.

    Whether the model serves that size is checked by `check_params`.
    """
    if text == "auto":
        return model.default_size
    width, x, height = text.partition("x")
    if not (x and width.isdecimal() and height.isdecimal()):
        raise InvalidRequest(
            f"size must be WIDTHxHEIGHT or auto; allowed: {', '.join(size_names(model))}, auto.", "size"
        )
    return int(width), int(height)


def random_seed() -> int:
    """A seed for a request that has none."""
    return secrets.randbelow(MAX_SEED + 1)


def _or_default(value: Value | None, default: Value) -> Value:
    return default if value is None else value
