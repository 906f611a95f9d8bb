"""A published model at its true shape with random weights: how fast a device draws its images.

Weights decide what an image shows, not how long it takes, so no file is needed. Texts are random as well:
encoding them is left out, and so is writing the file. Denoising and decoding follow one another.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from safelight.models.families.published_shapes import find_shape
from safelight.models.families.spec import Family, PublishedCheckpoint
from safelight.pipeline.assembly.device import fast_device, fast_dtype, free_bytes
from safelight.pipeline.assembly.random_weights import (
    needed_bytes,
    random_decoder,
    random_runner,
    random_text,
)
from safelight.pipeline.benchmark.machine import (
    Machine,
    identify_machine,
    peak_memory_bytes,
    reset_peak_memory,
)
from safelight.pipeline.calibration.peak import gemm_peak
from safelight.pipeline.calibration.progress import ProgressCallback
from safelight.pipeline.capacity.devices import MEASURED_PEAK_MFU, ConstantRateDevice, find_gpu
from safelight.pipeline.capacity.image_cost import ImageCost, ImageSpec, ModelProfile, Size, image_cost
from safelight.pipeline.capacity.model_profiles import checkpoint_profile
from safelight.pipeline.capacity.predict import HOUR, Targets, predict
from safelight.pipeline.diffusion.solvers import Plan, make_plan
from safelight.pipeline.engine.engine import Engine, SampleOutcome
from safelight.pipeline.engine.image_decoder import ImageDecoder, InvalidImage
from safelight.pipeline.engine.runner import StepRunner
from safelight.pipeline.params import GenerationParams
from safelight.pipeline.scheduling.batcher import Limits

WARM_UP_STEPS = 2
GIGABYTE = 1e9


class DoesNotFit(Exception):
    """The device has too little memory; the message says how much is missing, in one sentence."""


@dataclass(frozen=True, slots=True)
class RandomWeightsOptions:
    """What to measure.

    Attributes:
        name: of the checkpoint, as in `safelight.models.families.published_shapes`.
        size: (width, height) in pixels; None: the native size.
        num_steps: denoising steps; None: the family's.
        in_flight: numbers of images that are drawn together, one run each.
        with_compiled: whether to measure with compiled blocks, too.
        quantization: of the denoiser's large layers, in the runs that are not compiled.
    """

    name: str
    size: Size | None = None
    num_steps: int | None = None
    in_flight: tuple[int, ...] = (1, 2, 4, 8)
    with_compiled: bool = True
    quantization: str = "none"

    @property
    def modes(self) -> tuple[str, ...]:
        return ("eager", "compiled") if self.with_compiled else ("eager",)


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run: `in_flight` images that were requested at once, from there until the last one is decoded."""

    mode: str  # "eager" or "compiled"
    in_flight: int
    latency_s: float
    images_per_hour: float
    denoise_s: float  # of all images together
    decode_s: float
    mfu: float  # of denoising, as a share of the peak
    peak_memory_bytes: int  # of the device, or of the process on a processor
    warm_up_s: float  # before the run, compiling included


@dataclass(frozen=True, slots=True)
class Expected:
    """What the capacity model predicts of an image whose text is encoded, one after another."""

    by: str  # the device, in words
    peak_flops: float
    mfu: float
    latency_s: float
    images_per_hour: float


@dataclass(frozen=True, slots=True)
class RandomWeightsResult:
    """All runs, and what they are compared with."""

    model: str
    device: str
    dtype: str
    quantization: str
    spec: ImageSpec
    flops_per_image: float
    peak_flops: float  # of the best matrix product
    expected: Expected
    runs: tuple[RunResult, ...]
    machine: Machine

    def figures(self) -> dict[str, object]:
        """For JSON, without the machine, which a benchmark's record holds apart."""
        figures = asdict(self)
        del figures["machine"]
        return figures


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is measured: a checkpoint's shape, and one kind of image."""

    family: Family
    published: PublishedCheckpoint
    profile: ModelProfile
    spec: ImageSpec
    cost: ImageCost

    def params(self, seed: int, num_steps: int) -> GenerationParams:
        width, height = self.spec.size
        return GenerationParams(
            prompt="",
            negative_prompt="",
            width=width,
            height=height,
            num_steps=num_steps,
            guidance_scale=self.spec.guidance_scale,
            solver=self.spec.solver,
            seed=seed,
            timestep_spacing=self.profile.timestep_spacing,
        )

    def plan(self, params: GenerationParams) -> Plan:
        profile = self.profile
        return make_plan(
            params.solver,
            profile.schedule,
            profile.prediction,
            params.num_steps,
            spacing=params.timestep_spacing,
        )


def measure_random_weights(options: RandomWeightsOptions, progress: ProgressCallback) -> RandomWeightsResult:
    """Measure every mode and number of images in flight.

    Raises:
        KeyError: No published checkpoint has this name.
        InvalidParams: The checkpoint has no images of this size or number of steps.
        DoesNotFit: The device has too little memory.
    """
    subject = make_subject(options)
    device, dtype = fast_device(), fast_dtype()
    _check_memory(subject, device, dtype)
    progress("matrix products")
    peak = gemm_peak(device, dtype)
    runs: list[RunResult] = []
    with _memory_errors(subject.profile.name, device):
        decoder = random_decoder(subject.published, device, dtype)
        for mode in options.modes:
            progress(f"{mode}: weights")
            is_compiled = mode == "compiled"
            quantization = "none" if is_compiled else options.quantization
            runner = random_runner(
                subject.family, subject.published, device, dtype, quantization, is_compiled
            )
            for count in options.in_flight:
                runs.append(measure_run(subject, mode, count, runner, decoder, peak, progress))
            del runner  # before the next mode's weights
    return RandomWeightsResult(
        model=subject.profile.name,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        dtype=str(dtype).removeprefix("torch."),
        quantization=options.quantization,
        spec=subject.spec,
        flops_per_image=subject.cost.denoise + subject.cost.decode,
        peak_flops=peak,
        expected=expect(subject.profile, subject.spec, device, peak),
        runs=tuple(runs),
        machine=identify_machine(peak),
    )


def make_subject(options: RandomWeightsOptions) -> _Subject:
    """The shape and the image that `options` name; errors as in `measure_random_weights`."""
    family, published = find_shape(options.name)
    # no text is encoded, so its operations do not count
    profile = replace(checkpoint_profile(family, published), text=0)
    spec = ImageSpec(
        options.size or profile.native_size,
        options.num_steps or profile.num_steps,
        profile.guidance_scale,
        profile.solver,
    )
    return _Subject(family, published, profile, spec, image_cost(profile, spec))


def expect(profile: ModelProfile, spec: ImageSpec, device: torch.device, peak: float) -> Expected:
    """What `safelight plan` says of this device: by its data sheet, or else by its best matrix product."""
    gpu = find_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if gpu is None:
        name, peak_flops, mfu = "this machine by its best matrix product", peak, MEASURED_PEAK_MFU
    else:
        name, peak_flops, mfu = gpu.name, gpu.peak_flops, gpu.eager_mfu
    prediction = predict(profile, spec, ConstantRateDevice(mfu * peak_flops), Targets())
    return Expected(
        by=name,
        peak_flops=peak_flops,
        mfu=mfu,
        latency_s=prediction.stage_seconds.total,
        images_per_hour=prediction.images_per_hour_per_device,
    )


def measure_run(
    subject: _Subject,
    mode: str,
    count: int,
    runner: StepRunner,
    decoder: ImageDecoder,
    peak: float,
    progress: ProgressCallback,
) -> RunResult:
    """Draw `count` images together, once to warm up and once on the clock.

    Args:
        subject: The shape and the image.
        mode: How `runner` runs the blocks.
        count: The number of images.
        runner: The network.
        decoder: The decoder of the same checkpoint.
        peak: Operations a second of the device.
        progress: Called with what is being done.
    """
    label = f"{mode}, {count} in flight"
    progress(f"{label}: warming up")
    started = time.perf_counter()
    warm_up_steps = min(WARM_UP_STEPS, subject.spec.num_steps)
    _decode(decoder, [latents_of(outcome) for outcome in _denoise(subject, count, runner, warm_up_steps)])
    warm_up_seconds = time.perf_counter() - started
    reset_peak_memory(runner.device)
    progress(f"{label}: denoising")
    started = time.perf_counter()
    outcomes = _denoise(subject, count, runner, subject.spec.num_steps)
    denoised = time.perf_counter()
    progress(f"{label}: decoding")
    _decode(decoder, [latents_of(outcome) for outcome in outcomes])
    decoded = time.perf_counter()
    flops = sum(outcome.usage.cost.flops for outcome in outcomes)
    return RunResult(
        mode=mode,
        in_flight=count,
        latency_s=decoded - started,
        images_per_hour=HOUR * count / (decoded - started),
        denoise_s=denoised - started,
        decode_s=decoded - denoised,
        mfu=flops / (denoised - started) / peak,
        peak_memory_bytes=peak_memory_bytes(runner.device),
        warm_up_s=warm_up_seconds,
    )


def _denoise(subject: _Subject, count: int, runner: StepRunner, num_steps: int) -> list[SampleOutcome]:
    """The outcomes of `count` images that are requested at once and run together."""
    cost = subject.cost
    limits = Limits(max(2, count * cost.rows), count * cost.rows * cost.tokens)
    engine = Engine(runner, subject.plan, subject.profile.scale, limits)
    cond, uncond = (random_text(subject.family, subject.published, seed) for seed in (1, 2))
    for number in range(count):
        engine.add(str(number), subject.params(number, num_steps), cond, uncond)
    return list(_drain(engine))


def _drain(engine: Engine) -> Iterator[SampleOutcome]:
    while engine.has_work:
        yield from engine.step()


def latents_of(outcome: SampleOutcome) -> Tensor:
    """The latents of a sample; raises `RuntimeError` with the engine's reason if there are none."""
    if outcome.latents is None:
        raise RuntimeError(f"the engine gave no image: {outcome.error}")
    return outcome.latents


def _decode(decoder: ImageDecoder, latents: Sequence[Tensor]) -> None:
    for result in decoder.decode(latents):
        if isinstance(result, InvalidImage):
            raise RuntimeError(f"the decoder gave no image: {result}")


def _check_memory(subject: _Subject, device: torch.device, dtype: torch.dtype) -> None:
    """Raise `DoesNotFit` before anything is built that cannot be: a process that takes too much is killed."""
    needed = needed_bytes(subject.family, subject.published, dtype)
    free = free_bytes(device)
    if free is not None and needed > free:
        raise DoesNotFit(
            f"{subject.profile.name} takes about {needed / GIGABYTE:.1f} GB to build in "
            f"{str(dtype).removeprefix('torch.')}, and {device.type} has {free / GIGABYTE:.1f} GB free"
        )


@contextmanager
def _memory_errors(name: str, device: torch.device) -> Iterator[None]:
    """Turn an allocation that fails into `DoesNotFit`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise DoesNotFit(
            f"{name} does not fit into the memory of {device.type} with so many images in flight: "
            "give fewer, or a smaller size"
        ) from None
