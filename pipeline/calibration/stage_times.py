"""How fast this machine does each stage of a model, measured: what `safelight plan` reckons with where no peak is given."""

import statistics
from collections.abc import Callable

import torch

from safelight.models.checkpoints.json_files import read_json, spatial_compression
from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.device import fast_device, fast_dtype, set_threads
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_engine
from safelight.pipeline.calibration.cost_curve import LARGEST_ROW, measure_curve
from safelight.pipeline.calibration.peak import quick_gemm_peak
from safelight.pipeline.capacity.predict import MeasuredDevice
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.engine.image_decoder import InvalidImage

RUNS = 3  # of reading a text and of decoding, after one that is not counted
Say = Callable[[str], None]


def measure_stage_times(
    model: ModelInfo,
    size: tuple[int, int],
    *,
    num_threads: int,
    max_rows: int,
    max_tokens: int,
    quantization: str,
    say: Say,
) -> MeasuredDevice | None:
    """The cost curve of `model` here, and the medians of reading a text and of decoding `size` (width, height); about ten seconds.

    None for a network too large to be tried on a processor. Raises `CheckpointError` for a checkpoint that cannot be loaded.
    """
    set_threads(num_threads)
    engine = build_engine(model, max_rows=max_rows, max_tokens=max_tokens, quantization=quantization)
    if engine.row_flops(*model.native_size) > LARGEST_ROW and engine.device.type == "cpu":
        return None
    say("measuring what a tick costs")
    curve = measure_curve(engine, model)
    say("measuring the other stages")
    encoder, decoder = build_text_encoder(model), build_decoder(model)
    texts = [
        encoder.encode(["0" if model.labels else "a red apple"])[0].cost.device_seconds
        for _ in range(RUNS + 1)
    ]
    scale = spatial_compression(read_json(model.path / "vae" / "config.json"))
    width, height = (side // scale for side in size)
    latents = torch.zeros(engine.config.in_channels, height, width)
    images = [
        made[1].device_seconds
        for made in decoder.decode([latents] * (RUNS + 1))
        if not isinstance(made, InvalidImage)
    ]
    return MeasuredDevice(
        curve, statistics.median(texts[1:]), statistics.median(images[1:] or [0.0]), engine.limits
    )


def measure_peak(num_threads: int) -> float:
    """Operations a second of this machine's best matrix product, in about a second."""
    set_threads(num_threads)
    return quick_gemm_peak(fast_device(), fast_dtype())
