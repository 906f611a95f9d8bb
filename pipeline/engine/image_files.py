"""Pixels to PNG, WebP or JPEG bytes with the generation parameters in the file, but no time, id or host."""

import io
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from safelight.pipeline.engine import xmp
from safelight.pipeline.engine.image_metadata import parameters_json, parameters_text
from safelight.pipeline.params import GenerationParams

FORMATS = ("png", "webp", "jpeg")
PARAMETERS = "parameters"  # PNG text chunk in AUTOMATIC1111's form
PARAMETERS_JSON = "safelight"  # PNG text chunk with the exact parameters
USER_COMMENT = 0x9286
EXIF_IFD = 0x8769
FULL_COLOUR_QUALITY = 90  # from here on colour keeps its full resolution
PREVIEW_QUALITY = 80  # at most, of a preview's WebP or JPEG


def encode_image(
    pixels: np.ndarray,
    format: str,
    compression: int,
    params: GenerationParams,
    model_id: str,
    is_marked: bool = True,
) -> bytes:
    """The bytes of an image file.

    Args:
        pixels: (H, W, 3) uint8.
        format: One of `FORMATS`.
        compression: The quality of WebP and JPEG, 0 to 100 for the best. From `FULL_COLOUR_QUALITY` on, JPEG
            is 4:4:4 and WebP lossless.
        params: Written into the file, in the form that image tools read and exactly (`image_metadata`): in
            the text chunks `parameters` and `safelight` of PNG, in EXIF UserComment and XMP of WebP and JPEG.
        model_id: Written with them.
        is_marked: Whether the file says, in XMP, that its image was made by a trained model.

    Returns:
        The file.

    Raises:
        ValueError: The format is unknown.
    """
    if format not in FORMATS:
        raise ValueError(f"format {format!r} is unknown; allowed: {', '.join(FORMATS)}")
    text, exact = parameters_text(params, model_id), parameters_json(params, model_id)
    mark = _mark(params.edit is not None) if is_marked else None
    if format == "png":
        options: dict[str, Any] = {"pnginfo": _png_info(text, exact, mark)}
    else:
        options = _lossy_options(format, compression, text, exact, mark)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format.upper(), **options)
    return buffer.getvalue()


def encode_preview(
    pixels: np.ndarray, format: str, compression: int, is_edit: bool = False, is_marked: bool = True
) -> bytes:
    """The bytes of a preview's file: written fast, and without parameters, which give another image.

    Args:
        pixels: (H, W, 3) uint8.
        format: One of `FORMATS`.
        compression: The quality of WebP and JPEG, which is at most `PREVIEW_QUALITY` here.
        is_edit: Whether its image is an edit of another, whose mark is another one.
        is_marked: Whether the file says, in XMP, that its image was made by a trained model.
    """
    packet = xmp.packet(_mark(is_edit) if is_marked else None)
    options: dict[str, Any]
    if format == "png":
        options = {"compress_level": 1, "pnginfo": PngInfo()}
        if is_marked:
            options["pnginfo"].add_itxt(xmp.PNG_KEYWORD, packet.decode())
    else:
        options = {"quality": min(compression, PREVIEW_QUALITY), "xmp": packet}
        if format == "webp":
            options["method"] = 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format.upper(), **options)
    return buffer.getvalue()


def _mark(is_edit: bool) -> str:
    """What XMP says of the origin of an image."""
    return xmp.EDIT_MARK if is_edit else xmp.AI_MARK


def _lossy_options(format: str, compression: int, text: str, exact: str, mark: str | None) -> dict[str, Any]:
    """Pillow's options of a WebP or JPEG file.

    Args:
        format: `webp` or `jpeg`.
        compression: Its quality.
        text: The parameters as image tools read them.
        exact: The parameters as JSON.
        mark: The mark of AI-made images in it.
    """
    is_full_colour = compression >= FULL_COLOUR_QUALITY
    options: dict[str, Any] = {"quality": compression, "exif": _exif(text)}
    if format == "webp":
        options["xmp"] = xmp.packet(mark, exact)
        # Lossy WebP has colour at half resolution only, and Pillow offers nothing between it and lossless.
        options["lossless"] = is_full_colour
    else:
        packet, extension = xmp.jpeg_segments(mark, exact)
        options |= {"xmp": packet, "extra": extension}
        options["subsampling"] = "4:4:4" if is_full_colour else "4:2:0"
    return options


def _png_info(text: str, exact: str, mark: str | None) -> PngInfo:
    info = PngInfo()
    info.add_itxt(PARAMETERS, text)
    info.add_text(PARAMETERS_JSON, exact)
    if mark is not None:
        info.add_itxt(xmp.PNG_KEYWORD, xmp.packet(mark).decode())
    return info


def _exif(text: str) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
    return exif
