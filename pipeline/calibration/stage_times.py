"""Measures the seconds of each stage of a model on this machine, for `safelight plan`."""

import statistics

import torch

from safelight.models.checkpoints.json_files import read_json, spatial_compression
from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.device import fast_device, fast_dtype, set_threads
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_engine
from safelight.pipeline.calibration.cost_curve import LARGEST_ROW, measure_curve
from safelight.pipeline.calibration.peak import quick_gemm_peak
from safelight.pipeline.calibration.progress import ProgressCallback
from safelight.pipeline.capacity.devices import MeasuredDevice
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.engine.image_decoder import InvalidImage

RUNS = 3  # of encoding and of decoding, after one that does not count


def measure_stage_times(
    model: ModelInfo,
    size: tuple[int, int],
    *,
    num_threads: int,
    max_rows: int,
    max_tokens: int,
    quantization: str,
    progress: ProgressCallback,
) -> MeasuredDevice | None:
    """The cost curve of a model on this machine, and the median seconds of encoding and decoding.

    Takes about ten seconds.

    Args:
        model: the model to measure.
        size: (width, height) in pixels of the image to decode.
        num_threads: threads of torch.
        max_rows: largest number of rows in a tick.
        max_tokens: largest number of tokens in a tick; 0 for the default.
        quantization: of the denoiser.
        progress: called with what is being measured.

    Returns:
        The measured device, or None for a network that is too large to be measured on a processor.

    Raises `CheckpointError` for a checkpoint that cannot be loaded.
    """
    set_threads(num_threads)
    engine = build_engine(model, max_rows=max_rows, max_tokens=max_tokens, quantization=quantization)
    if engine.row_flops(*model.native_size) > LARGEST_ROW and engine.device.type == "cpu":
        return None
    progress("measuring the cost curve")
    curve = measure_curve(engine, model)
    progress("measuring the other stages")
    encode_seconds = _encode_seconds(model)
    decode_seconds = _decode_seconds(model, engine.config.in_channels, size)
    return MeasuredDevice(curve, encode_seconds, decode_seconds, engine.limits)


def _encode_seconds(model: ModelInfo) -> float:
    """Median seconds to encode a text."""
    encoder = build_text_encoder(model)
    prompt = "0" if model.labels else "a red apple"
    seconds = [encoder.encode([prompt])[0].cost.device_seconds for _ in range(RUNS + 1)]
    return statistics.median(seconds[1:])


def _decode_seconds(model: ModelInfo, num_channels: int, size: tuple[int, int]) -> float:
    """Median seconds to decode an image of `size` (width, height); 0 if it cannot be decoded."""
    decoder = build_decoder(model)
    scale = spatial_compression(read_json(model.path / "vae" / "config.json"))
    width, height = (side // scale for side in size)
    latents = torch.zeros(num_channels, height, width)
    seconds = [
        result[1].device_seconds
        for result in decoder.decode([latents] * (RUNS + 1))
        if not isinstance(result, InvalidImage)
    ]
    return statistics.median(seconds[1:] or [0.0])


def measure_peak(num_threads: int) -> float:
    """Floating-point operations a second of this machine's best matrix product. Takes about a second."""
    set_threads(num_threads)
    return quick_gemm_peak(fast_device(), fast_dtype())
