"""Files that clients upload by mistake or by malice, and what the service says to each."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

SIDE = 64


def png(image: Image.Image | None = None, **options: Any) -> bytes:
    return save(image or photo(), "PNG", **options)


def save(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def photo(width: int = SIDE, height: int = SIDE) -> Image.Image:
    """An image in which every row and column differs."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(
        np.stack([4 * rows % 256, 3 * columns % 256, (rows + columns) % 256], -1).astype(np.uint8)
    )


def mask(width: int = SIDE, height: int = SIDE, transparent: bool = True) -> Image.Image:
    """A mask whose right half is to be redrawn."""
    image = Image.new("RGBA", (width, height), "black")
    if transparent:
        image.paste((0, 0, 0, 0), (width // 2, 0, width, height))
    return image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG that declares a size, with any chunks."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def zeros(num_bytes: int) -> bytes:
    """A small deflated stream of so many zeros."""
    compressor = zlib.compressobj(9)
    block = bytes(1 << 20)
    parts = [compressor.compress(block) for _ in range(num_bytes >> 20)]
    return b"".join(parts) + compressor.flush()


def animation(format: str) -> bytes:
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "green", "blue")]
    return save(frames[0], format, save_all=True, append_images=frames[1:])


def webp_canvas(side: int) -> bytes:
    """An extended WebP file with a canvas of `side` x `side`, whose one image is small."""
    image = save(photo(), "WEBP", lossless=True)[12:]
    size = (side - 1).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + size + size
    body = b"WEBP" + extended + image
    return b"RIFF" + struct.pack("<I", len(body)) + body


def text_bomb() -> bytes:
    """A PNG of one pixel whose compressed text takes 8 MB, more than a text may."""
    text = chunk(b"zTXt", b"Comment\0\0" + zeros(8 << 20))
    return png_of(1, 1, text, chunk(b"IDAT", zlib.compress(bytes(4))))


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose header declares another size."""
    data = bytearray(save(photo(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@dataclass(frozen=True)
class Bad:
    """A file that is refused: the field that the answer names, and a part of its sentence."""

    image: bytes
    says: str
    mask: bytes | None = None
    param: str = "image"


SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
TOO_MANY = "image has too many pixels; at most 25000000 are allowed"
IMAGE_KIND = "image must be a PNG, JPEG or WebP file"
BAD_FILES: dict[str, Callable[[], Bad]] = {
    "empty": lambda: Bad(b"", "image is empty"),
    "text": lambda: Bad(b"a red apple, please", IMAGE_KIND),
    "html": lambda: Bad(b"<!doctype html><title>404</title>", IMAGE_KIND),
    "svg": lambda: Bad(SVG, IMAGE_KIND),
    "pdf": lambda: Bad(b"%PDF-1.7\n1 0 obj<<>>endobj", IMAGE_KIND),
    "zip": lambda: Bad(b"PK\x03\x04" + bytes(100), IMAGE_KIND),
    "gzip bomb": lambda: Bad(b"\x1f\x8b\x08" + zeros(8 << 20), IMAGE_KIND),
    "gif": lambda: Bad(save(photo(), "GIF"), IMAGE_KIND),
    "bmp": lambda: Bad(save(photo(), "BMP"), IMAGE_KIND),
    "tiff": lambda: Bad(save(photo(), "TIFF"), IMAGE_KIND),
    "ico": lambda: Bad(save(photo(), "ICO"), IMAGE_KIND),
    "eps": lambda: Bad(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", IMAGE_KIND),
    "a signature alone": lambda: Bad(b"\x89PNG\r\n\x1a\n", IMAGE_KIND),
    "truncated png": lambda: Bad(png()[: len(png()) // 2], "image cannot be decoded"),
    "truncated jpeg": lambda: Bad(save(photo(), "JPEG")[:-300], "image cannot be decoded"),
    "truncated webp": lambda: Bad(save(photo(), "WEBP")[:-100], "image"),
    "png without pixels": lambda: Bad(png_of(8, 8), "image cannot be decoded"),
    "png with a wrong checksum": lambda: Bad(png()[:29] + bytes(4) + png()[33:], IMAGE_KIND),
    "png of no size": lambda: Bad(png_of(0, 0), "image"),
    "png header of 100000x10000": lambda: Bad(png_of(100_000, 10_000), TOO_MANY),
    "png header of 9000x9000": lambda: Bad(png_of(9000, 9000), "9000x9000 pixels; at most 25000000"),
    "png header of 2^31": lambda: Bad(png_of(2**31 - 1, 2**31 - 1), "image"),
    "pixel bomb": lambda: Bad(png_of(12_000, 12_000, chunk(b"IDAT", zeros(8 << 20))), TOO_MANY),
    "text bomb": lambda: Bad(text_bomb(), "image cannot be decoded"),
    "jpeg header of 65000x65000": lambda: Bad(jpeg_of(65_000, 65_000), TOO_MANY),
    "webp canvas of 16383x16383": lambda: Bad(webp_canvas(16_383), "16383x16383 pixels"),
    "animated webp": lambda: Bad(animation("WEBP"), "image is an animation of 3 frames"),
    "animated png": lambda: Bad(animation("PNG"), "image is an animation of 3 frames"),
    "mask of another size": lambda: Bad(
        png(), "mask must have the size of the image, 64x64; it is 32x64", png(mask(32)), "mask"
    ),
    "mask that keeps all": lambda: Bad(
        png(), "mask lets nothing be redrawn", png(mask(transparent=False)), "mask"
    ),
    "mask of text": lambda: Bad(png(), "mask must be a PNG, JPEG or WebP file", b"nothing", "mask"),
    "empty mask": lambda: Bad(png(), "mask is empty", b"", "mask"),
    "truncated mask": lambda: Bad(png(), "mask cannot be decoded", png()[: len(png()) // 2], "mask"),
    "huge mask": lambda: Bad(png(), "mask has too many pixels", png_of(100_000, 10_000), "mask"),
}  # fmt: skip


def sixteen_bits() -> Image.Image:
    """Grey of 16 bits, whose upper half is the column."""
    return Image.fromarray((np.arange(SIDE, dtype=np.uint16) * 257 * 4)[None].repeat(SIDE, 0))


def with_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(photo(48, SIDE), "JPEG", exif=exif, quality=100, subsampling=0)


def data_url(file: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(file).decode()}"


def as_json(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields).encode()


def with_text(text: str) -> bytes:
    info = PngInfo()
    info.add_text("Comment", text)
    return png(pnginfo=info)
