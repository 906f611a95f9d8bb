"""All three stages in one process, as the command line uses them, and how each stage is made.

No other module of the service makes stages. Torch is imported when a stage is made, not before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.pipeline.capacity.model_profiles import model_profile
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.nearest_size import nearest_size
from safelight.pipeline.params import GenerationParams
from safelight.service.backend import STAGES
from safelight.service.messages import (
    NO_CONTEXT,
    DecodeResult,
    EncodedSource,
    ImageFormat,
    PreparedSource,
    Preview,
    PreviewLatents,
    Quote,
    RequestContext,
    StageStatus,
    Upload,
    with_size_of,
    with_source_usage,
)
from safelight.service.moderation.image_classifier import load_classifier
from safelight.service.previews import PreviewDecoding, PreviewSink
from safelight.service.runtime.asyncio_tasks import cancel_and_wait
from safelight.service.runtime.cores import num_cores
from safelight.service.runtime.fast_imports import gc_frozen_imports
from safelight.service.settings import Settings
from safelight.service.stage_sets import plan_stages
from safelight.service.stages.decode import DecodeStage
from safelight.service.stages.denoise import DenoiseStage
from safelight.service.stages.encode import EncodeStage
from safelight.service.stages.tick_watchdog import TickWatchdog

if TYPE_CHECKING:
    import numpy as np

    from safelight.pipeline.engine.engine import Engine
    from safelight.pipeline.engine.image_decoder import ImageDecoder
    from safelight.pipeline.engine.source_image import SourceImage
    from safelight.pipeline.engine.text_encoder import TextEncoder

# Floating-point operations of a text or an image below which its stage uses one thread.
# That leaves the other cores to the denoiser.
SMALL_FLOPS = 2e10


class InProcessPipeline:
    """The three stages of a model, which load their networks at the same time, each on its own thread.

    Args:
        model: The model.
        settings: The service's settings.
        encoder: The text encoder of another model, which has equal files; None: one is made.
        decoder: Likewise the decoder.
    """

    def __init__(
        self,
        model: ModelInfo,
        settings: Settings,
        encoder: EncodeStage | None = None,
        decoder: DecodeStage | None = None,
    ):
        # Before any stage has a thread: what they import must not be imported by two threads at once.
        with gc_frozen_imports():
            from safelight.pipeline.assembly.encoder import import_libraries

            import_libraries(model)

        self.encoder = encoder or make_encode_stage(model, settings)
        self.denoiser = make_denoise_stage(model, settings)
        self.decoder = decoder or make_decode_stage(model, settings)

    async def generate(
        self,
        params: GenerationParams,
        output: ImageFormat,
        context: RequestContext = NO_CONTEXT,
        source: PreparedSource | None = None,
        previews: PreviewSink | None = None,
    ) -> DecodeResult:
        """Generate one image: see `Backend.generate`."""
        content: EncodedSource | None = None if source is None else source.content

        async def decode(latents: PreviewLatents) -> Preview | None:
            return await self.decoder.decode_preview(latents, output, context, content)

        with self.denoiser.admission.place(params, context) as place:
            conditioning = await self.encoder.encode(params, context)
            async with PreviewDecoding(decode, previews) as decoding:
                denoised = await self.denoiser.generate(
                    conditioning, params, context, content, decoding.request, decoding.start, place
                )
                result = await self.decoder.decode(denoised, params, output, context, content)
                return decoding.charge(result)

    async def generate_all(
        self, images: Sequence[GenerationParams], output: ImageFormat, upload: Upload | None = None
    ) -> list[DecodeResult]:
        """Generate all images of one request, in order; edits get the size that their source has."""
        source = None if upload is None else await self.prepare(upload)
        tasks = [
            asyncio.ensure_future(self.generate(with_size_of(image, source), output, source=source))
            for image in images
        ]
        try:
            return with_source_usage(await asyncio.gather(*tasks), source)
        finally:
            await cancel_and_wait(*tasks)

    async def prepare(self, upload: Upload, context: RequestContext = NO_CONTEXT) -> PreparedSource:
        content, report = await self.decoder.prepare(upload, context)
        return PreparedSource(report, content)

    async def quote(self, params: GenerationParams, context: RequestContext) -> Quote:
        """What the denoiser would say of an image: see `Backend.quote`."""
        return self.denoiser.admission.quote(params, context)

    @property
    def stages(self) -> tuple[EncodeStage, DenoiseStage, DecodeStage]:
        return self.encoder, self.denoiser, self.decoder

    async def status(self) -> Mapping[str, StageStatus | None]:
        """The status of every stage: see `Backend.status`."""
        return dict(zip(STAGES, (stage.status() for stage in self.stages), strict=True))

    def wait(self) -> None:
        """Wait until every stage is made; raises the error of one that could not be made."""
        for stage in self.stages:
            stage.wait()

    def close(self) -> None:
        """End the stages' threads."""
        for stage in self.stages:
            stage.close()


def make_pipelines(models: Sequence[ModelInfo], settings: Settings) -> list[InProcessPipeline]:
    """The stages of several models in this process; models with equal encoders or decoders share them."""
    pipelines: list[InProcessPipeline] = []
    encoders: dict[str, EncodeStage] = {}
    decoders: dict[str, DecodeStage] = {}
    for names in plan_stages(models, settings):
        pipeline = InProcessPipeline(
            names.model, settings, encoders.get(names.encode), decoders.get(names.decode)
        )
        encoders.setdefault(names.encode, pipeline.encoder)
        decoders.setdefault(names.decode, pipeline.decoder)
        pipelines.append(pipeline)
    return pipelines


def _threads_for(flops: float) -> int:
    return 1 if flops < SMALL_FLOPS else num_cores()


def make_encode_stage(model: ModelInfo, settings: Settings) -> EncodeStage:
    """Make the text encoding stage. It loads its network on its own thread: see its `wait`."""
    with gc_frozen_imports():
        from safelight.pipeline.assembly.encoder import build_text_encoder, import_libraries

        import_libraries(model)

    def make() -> TextEncoder:
        return build_text_encoder(
            model, num_threads=settings.encode_threads or _threads_for(model_profile(model).text)
        )

    return EncodeStage(make, model.id, settings.text_cache_bytes)


def make_denoise_stage(
    model: ModelInfo, settings: Settings, on_hang: Callable[[float], None] | None = None
) -> DenoiseStage:
    """Make the denoising stage. Its thread loads the network, then measures cost curve and peak FLOP/s.

    It measures nothing if another one of this machine has kept its measurements for it.

    Args:
        model: The model.
        settings: The service's settings.
        on_hang: Called if a tick does not end, with the seconds that it had; None: ticks are not watched.
    """
    with gc_frozen_imports():
        from safelight.pipeline.assembly.engine import build_engine
        from safelight.pipeline.calibration.cost_curve import measure_curve
        from safelight.pipeline.calibration.memory import memory_limits
        from safelight.pipeline.calibration.peak import quick_gemm_peak
        from safelight.pipeline.calibration.saved import Calibration, load_calibration, save_calibration

    def make() -> Engine:
        engine = build_engine(
            model,
            max_rows=settings.max_rows,
            max_tokens=settings.max_tokens,
            num_threads=settings.denoise_threads or num_cores(),
            quantization=settings.quantization,
            is_compiled=settings.compile_blocks,
        )
        path = _calibration_path(model, settings)
        measured = None if path is None else load_calibration(path)
        if measured is None:
            curve = measure_curve(engine, model)
            peak_flops = 1e12 * settings.peak_tflops or quick_gemm_peak(engine.device, engine.dtype)
            measured = Calibration(curve, peak_flops, memory_limits(engine, model))
            if path is not None:
                save_calibration(path, measured)
        return engine.calibrated(measured.curve, measured.peak_flops, measured.limits)

    watchdog = None if on_hang is None else TickWatchdog(settings.hang_seconds, on_hang)
    return DenoiseStage(make, settings.deadline_seconds, model.id, settings.promise_probability, watchdog)


def _calibration_path(model: ModelInfo, settings: Settings) -> Path | None:
    """Where the measurements of a model's denoisers are kept; None if nowhere."""
    folder = settings.calibration_folder
    return Path(folder) / f"{sha256(model.id.encode()).hexdigest()[:16]}.json" if folder else None


def make_decode_stage(model: ModelInfo, settings: Settings) -> DecodeStage:
    """Make the decoding stage. It loads its network on its own thread: see its `wait`.

    Each image says its model, which has the autoencoder of `model`.
    """
    with gc_frozen_imports():
        from safelight.pipeline.assembly.decoder import build_decoder
        from safelight.pipeline.engine.image_files import encode_image, encode_preview
        from safelight.pipeline.engine.source_image import read_source

    def make() -> ImageDecoder:
        width, height = (side // model_profile(model).scale for side in model.native_size)
        return build_decoder(
            model,
            num_threads=settings.decode_threads or _threads_for(model_profile(model).decode(height, width)),
        )

    def write(pixels: np.ndarray, output: ImageFormat, params: GenerationParams, model_id: str) -> bytes:
        name = model_id or model.id
        return encode_image(pixels, output.format, output.compression, params, name, settings.mark_images)

    def write_preview(pixels: np.ndarray, output: ImageFormat, is_edit: bool) -> bytes:
        return encode_preview(pixels, output.format, output.compression, is_edit, settings.mark_images)

    def read(upload: Upload) -> SourceImage:
        sizes = (upload.sizes or model.sizes) if upload.size is None else (upload.size,)
        return read_source(upload.image, upload.mask, lambda size: nearest_size(size, sizes))

    path = settings.image_classifier
    classifier = partial(load_classifier, path) if path else None
    return DecodeStage(make, write, write_preview, read, classifier)
