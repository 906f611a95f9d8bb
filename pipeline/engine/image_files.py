"""Pixels to PNG, WebP or JPEG bytes with the generation parameters in the file, but no time, id or host."""

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
    """The bytes of an image file.

    Args:
        pixels: (H, W, 3) uint8.
        format: One of `FORMATS`.
        compression: The quality of WebP and JPEG, 0 to 100 for the best; WebP at 100 is lossless.
        params: Written into the text chunk `parameters` of PNG, and into EXIF UserComment of WebP and JPEG.
        model_id: Written with them.

    Returns:
        The file.

    Raises:
        ValueError: The format is unknown.
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
    """The parameters in the form that image tools read: prompt, negative prompt and a line of settings."""
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
    if_not_default = {
        "Schedule type": (params.timestep_spacing, params.timestep_spacing != "trailing"),
        "Eta": (f"{params.eta:g}", params.eta > 0.0),
        "CFG interval": (f"{start:g}-{end:g}", (start, end) != (0.0, 1.0)),
        "CFG stride": (params.guidance_stride, params.guidance_stride > 1),
        "CFG rescale": (f"{params.guidance_rescale:g}", params.guidance_rescale > 0.0),
    }
    settings |= {name: value for name, (value, is_set) in if_not_default.items() if is_set}
    lines = [params.prompt]
    if params.negative_prompt:
        lines.append(f"Negative prompt: {params.negative_prompt}")
    lines.append(", ".join(f"{name}: {value}" for name, value in settings.items()))
    return "\n".join(lines)


def _exif(text: str) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
    return exif
