"""Pixels to PNG, WebP or JPEG bytes, with the generation parameters written into the file. No time, no id, no host."""

import io

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from safelight.pipeline.params import GenerationParams

FORMATS = ("png", "webp", "jpeg")
USER_COMMENT = 0x9286
EXIF_IFD = 0x8769


def encode_image(
    pixels: np.ndarray, format: str, compression: int, params: GenerationParams, model_id: str
) -> bytes:
    """Pixels (H, W, 3) uint8 to a file's bytes; `compression` 0..100 is the quality of WebP and JPEG, 100 the best.

    PNG carries the parameters in the text chunk `parameters`, WebP and JPEG in EXIF UserComment. Raises `ValueError`
    for an unknown format.
    """
    image = Image.fromarray(pixels)
    text = parameters_text(params, model_id)
    buffer = io.BytesIO()
    if format == "png":
        info = PngInfo()
        info.add_itxt("parameters", text)
        image.save(buffer, "PNG", pnginfo=info)
    elif format in FORMATS:
        lossless = {"lossless": True} if format == "webp" and compression == 100 else {}
        image.save(buffer, format.upper(), quality=compression, exif=_exif(text), **lossless)
    else:
        raise ValueError(f"format {format!r} is unknown; allowed: {', '.join(FORMATS)}")
    return buffer.getvalue()


def parameters_text(params: GenerationParams, model_id: str) -> str:
    """The parameters in the form that image tools read: prompt, negative prompt, one line of settings."""
    settings = {
        "Steps": params.num_steps,
        "Sampler": params.solver,
        "CFG scale": f"{params.guidance_scale:g}",
        "Seed": params.seed,
        "Image index": params.image_index,
        "Size": f"{params.width}x{params.height}",
        "Model": model_id,
    }
    start, end = params.guidance_interval
    asked_for = {
        "Schedule type": (params.timestep_spacing, params.timestep_spacing != "trailing"),
        "Eta": (f"{params.eta:g}", params.eta > 0.0),
        "CFG interval": (f"{start:g}-{end:g}", (start, end) != (0.0, 1.0)),
        "CFG stride": (params.guidance_stride, params.guidance_stride > 1),
        "CFG rescale": (f"{params.guidance_rescale:g}", params.guidance_rescale > 0.0),
    }
    settings |= {name: value for name, (value, is_set) in asked_for.items() if is_set}
    lines = [
        params.prompt,
        *([f"Negative prompt: {params.negative_prompt}"] if params.negative_prompt else []),
    ]
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in settings.items())])


def _exif(text: str) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
    return exif
