"""Uploaded files to the source of an edit: decoded within limits, upright, opaque, at the model's size.

Shapes: H x W pixels of the edited image.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from safelight.pipeline.errors import InvalidParams

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 25_000_000  # of an upload: those of a telephone's photograph; its decoded form takes 100 MB
HALF = 128  # of 255, from which a mask's pixel is redrawn
ALL = 255  # the weight of a pixel that is redrawn
WEBP_SIGNATURE = (b"RIFF", b"WEBP")

Size = tuple[int, int]  # width and height in pixels


@dataclass(frozen=True, slots=True)
class SourceImage:
    """The source of an edit, at the size of the edited image."""

    pixels: np.ndarray  # (H, W, 3) uint8
    redraw: np.ndarray | None  # (H, W) uint8: the share of 255 by which a pixel is redrawn; None: everywhere
    uploaded: Size  # of the upload, upright
    crop: tuple[int, int, int, int]  # the part of it that was taken: left, top, right, bottom

    @property
    def size(self) -> Size:
        height, width, _ = self.pixels.shape
        return width, height

    def paste(self, pixels: np.ndarray) -> np.ndarray:
        """`pixels` (H, W, 3) uint8 where the mask lets them be redrawn, and exactly the source elsewhere."""
        if self.redraw is None:
            return pixels
        weight = self.redraw[..., None].astype(np.uint16)
        mixed: np.ndarray = (pixels * weight + self.pixels * (ALL - weight) + ALL // 2) // ALL
        return mixed.astype(np.uint8)


def read_source(image: bytes, mask: bytes | None, choose_size: Callable[[Size], Size]) -> SourceImage:
    """The source in an uploaded file.

    It is cut to the aspect ratio of the edited image around its middle, and resampled to its size.
    Transparent parts become white.

    Args:
        image: A PNG, JPEG or WebP file.
        mask: Likewise, of the same size. Where it is more than half transparent the image is redrawn; in a
            mask without transparency, where it is brighter than half.
        choose_size: The size of the edited image, by that of the upload.

    Raises:
        InvalidParams: A file cannot be read, is too large or does not fit, named `image` or `mask`.
    """
    upright = _read(image, "image")
    uploaded, size = upright.size, choose_size(upright.size)
    crop = _crop(uploaded, size)
    pixels = np.array(_opaque(upright.resize(size, Image.Resampling.LANCZOS, box=crop, reducing_gap=3.0)))
    del upright  # so that one large image is in memory, not two
    redraw = None if mask is None else _read_mask(mask, uploaded, size, crop)
    return SourceImage(pixels, redraw, uploaded, crop)


def _read_mask(mask: bytes, uploaded: Size, size: Size, crop: tuple[int, int, int, int]) -> np.ndarray:
    """The weights (H, W) uint8 of a mask for an image of `uploaded`, of which `crop` becomes `size`."""
    image = _read(mask, "mask")
    if image.size != uploaded:
        raise InvalidParams(
            "mask",
            f"mask must have the size of the image, {uploaded[0]}x{uploaded[1]}; "
            f"it is {image.width}x{image.height}",
        )
    binary = _brightness_of_redrawn(image).point(lambda value: ALL if value >= HALF else 0)
    weights = np.array(binary.resize(size, Image.Resampling.BOX, box=crop))
    if not weights.any():
        raise InvalidParams(
            "mask",
            "mask lets nothing be redrawn: make transparent what is to be redrawn, "
            "or white in a mask without transparency",
        )
    return weights


def _brightness_of_redrawn(mask: Image.Image) -> Image.Image:
    """A mask's levels, bright where the image is redrawn: its transparency if it has any."""
    if mask.has_transparency_data:
        transparency = ImageOps.invert(mask.convert("RGBA").getchannel("A"))
        if transparency.getbbox() is not None:
            return transparency
    return mask.convert("L")


def _crop(uploaded: Size, size: Size) -> tuple[int, int, int, int]:
    """The largest part of `uploaded` around its middle with the aspect ratio of `size`."""
    (width, height), (target_width, target_height) = uploaded, size
    crop_width = max(1, min(width, round(height * target_width / target_height)))
    crop_height = max(1, min(height, round(width * target_height / target_width)))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def _read(data: bytes, name: str) -> Image.Image:
    """A file as a decoded, upright image of 8 bits a channel. Raises `InvalidParams` that names `name`."""
    if not data:
        raise InvalidParams(name, f"{name} is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of files that are odd, but can be read
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            _check_size(_webp_size(data), name)  # Pillow takes memory for a WebP file's canvas as it opens it
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(image.size, name)
            _check_frames(image, name)
            image.load()
            return _eight_bits(_upright(image))
    except InvalidParams:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InvalidParams(name, f"{name} has too many pixels; at most {MAX_PIXELS} are allowed") from None
    except UnidentifiedImageError:
        raise InvalidParams(name, f"{name} must be a PNG, JPEG or WebP file") from None
    except Exception as error:  # decoders of broken files raise many kinds
        raise InvalidParams(name, f"{name} cannot be decoded: {error}") from None


def _check_size(size: Size, name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise InvalidParams(
            name, f"{name} has {width}x{height} pixels; at most {MAX_PIXELS} are allowed in all"
        )


def _check_frames(image: Image.Image, name: str) -> None:
    """Refuse animations. A JPEG of several images, as telephones write it, counts as its first."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format in ("PNG", "WEBP"):
        raise InvalidParams(name, f"{name} is an animation of {frames} frames; it must be a still image")


def _webp_size(data: bytes) -> Size:
    """The canvas that an extended WebP file declares; no pixels for any other file."""
    if (data[:4], data[8:12]) != WEBP_SIGNATURE or data[12:16] != b"VP8X":
        return 0, 0
    return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image in RGB or RGBA. Pillow would clip 16 bits of grey, which keep their upper half here."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says it is to be seen; as it is where EXIF cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # broken EXIF data raise many kinds
        return image


def _opaque(image: Image.Image) -> Image.Image:
    """An RGB image, with white behind what is transparent."""
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
