"""Uploads as sources of edits: what is refused and how, and what becomes of orientation, alpha and size."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from safelight.pipeline.catalog.nearest_size import nearest_size
from safelight.pipeline.engine import source_image
from safelight.pipeline.engine.source_image import SourceImage, read_source
from safelight.pipeline.errors import InvalidParams
from tests.service.http.uploads import (
    BAD_FILES,
    SIDE,
    mask,
    photo,
    png,
    save,
    sixteen_bits,
    with_orientation,
    with_text,
)

SIZE = (SIDE, SIDE)


def read(image: bytes, mask: bytes | None = None, size: tuple[int, int] = SIZE) -> SourceImage:
    return read_source(image, mask, lambda _: size)


def peak_kilobytes() -> int:
    """The largest resident memory of this process since `start_peak`."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def start_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return peak_kilobytes()


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_by_its_field_in_little_memory(name: str) -> None:
    bad = BAD_FILES[name]()
    before = start_peak()
    with pytest.raises(InvalidParams) as error:
        read(bad.image, bad.mask)
    assert error.value.param == bad.param
    assert bad.says in str(error.value)
    assert peak_kilobytes() - before < 16_000


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_pixels_of_the_right_size_are_kept(format: str) -> None:
    source = read(save(photo(), format, lossless=True))
    assert np.array_equal(source.pixels, pixels(photo()))
    assert source.redraw is None
    assert (source.size, source.uploaded, source.crop) == (SIZE, SIZE, (0, 0, SIDE, SIDE))


MODES: dict[str, Image.Image] = {
    "grey": photo().convert("L"),
    "black and white": photo().convert("1"),
    "palette": photo().quantize(16),
}


@pytest.mark.parametrize("name", MODES)
def test_other_kinds_of_pixels_become_rgb(name: str) -> None:
    assert np.array_equal(read(png(MODES[name])).pixels, pixels(MODES[name]))


def test_grey_of_sixteen_bits_keeps_its_range() -> None:
    row = read(png(sixteen_bits())).pixels[0, :, 0]
    assert row.tolist() == [4 * column for column in range(SIDE)]


def test_a_cmyk_jpeg_keeps_its_colours() -> None:
    """White stays white: Adobe's files hold inverted values."""
    image = Image.new("CMYK", SIZE, (0, 0, 0, 0))
    image.paste((0, 255, 255, 0), (0, 0, SIDE, 32))
    result = read(save(image, "JPEG", quality=100)).pixels
    assert result[-1, 0].min() > 250
    assert result[0, 0, 0] > 250 and result[0, 0, 1:].max() < 5


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette"])
def test_what_is_transparent_becomes_white(kind: str) -> None:
    image = Image.new("RGBA", SIZE, (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, SIDE, 32))
    image = image.quantize(4) if kind == "palette" else image.convert(kind)
    result = read(png(image)).pixels
    assert (result[:32] == 255).all() and (result[32:] == 0).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(orientation: int) -> None:
    """Each as Pillow's own table of transpositions says."""
    transpositions = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
    expected = photo(48, SIDE)
    if orientation > 1:
        expected = expected.transpose(Image.Transpose(transpositions[orientation]))
    source = read(with_orientation(orientation), size=expected.size)
    assert source.uploaded == expected.size
    assert np.abs(source.pixels.astype(int) - pixels(expected)).mean() < 6.0


def test_exif_that_cannot_be_read_does_not_matter() -> None:
    file = save(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage")
    assert read(file).uploaded == SIZE


def test_a_photograph_with_a_second_image_is_its_first() -> None:
    """Telephones append a map of brightness in this form (MPO)."""
    file = save(photo(), "MPO", save_all=True, append_images=[Image.new("RGB", SIZE, "red")])
    assert np.abs(read(file).pixels.astype(int) - pixels(photo())).mean() < 12.0


def test_short_texts_in_a_file_are_ignored() -> None:
    assert np.array_equal(read(with_text("a" * 1000)).pixels, pixels(photo()))


@pytest.mark.parametrize(
    ("uploaded", "size", "crop"),
    [
        ((100, 50), (64, 64), (25, 0, 75, 50)),
        ((50, 101), (64, 64), (0, 25, 50, 75)),
        ((32, 32), (64, 64), (0, 0, 32, 32)),
        ((200, 100), (64, 32), (0, 0, 200, 100)),
        ((2000, 1), (64, 64), (999, 0, 1000, 1)),
    ],
)
def test_an_upload_is_cut_around_its_middle_and_resampled(
    uploaded: tuple[int, int], size: tuple[int, int], crop: tuple[int, int, int, int]
) -> None:
    source = read(png(photo(*uploaded)), size=size)
    assert (source.crop, source.uploaded, source.size) == (crop, uploaded, size)
    box = photo(*uploaded).crop(crop)
    expected = pixels(box.resize(size, Image.Resampling.LANCZOS))
    assert np.abs(source.pixels.astype(int) - expected).mean() < 8.0


def test_the_size_may_depend_on_the_upload() -> None:
    sizes = ((64, 64), (96, 64), (64, 96))
    source = read_source(png(photo(50, 80)), None, lambda size: nearest_size(size, sizes))
    assert source.size == (64, 96)


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        ((1000, 1000), (64, 64)), ((128, 128), (128, 128)), ((90, 60), (96, 64)), ((1, 100), (64, 96)),
        ((64, 33), (96, 64)),
    ],
)  # fmt: skip
def test_the_nearest_size_has_the_nearest_aspect_then_area(
    size: tuple[int, int], nearest: tuple[int, int]
) -> None:
    sizes = [(64, 64), (128, 128), (96, 64), (64, 96)]
    if size == (1000, 1000):
        sizes.remove((128, 128))
    assert nearest_size(size, sizes) == nearest


MASKS: dict[str, bytes] = {
    "transparent right half": png(mask()),
    "white right half": png(mask().getchannel("A").point(lambda value: 255 - value)),
    "white right half of an opaque mask": png(
        Image.merge("RGB", [mask().getchannel("A").point(lambda value: 255 - value)] * 3).convert("RGBA")
    ),
    "jpeg": save(mask().getchannel("A").point(lambda value: 255 - value), "JPEG", quality=60),
    "palette": png(mask().quantize(4)),
}


@pytest.mark.parametrize("name", MASKS)
def test_what_is_transparent_or_else_white_is_redrawn(name: str) -> None:
    redraw = read(png(), MASKS[name]).redraw
    assert redraw is not None
    assert (redraw[:, :32] == 0).all() and (redraw[:, 32:] == 255).all()


def test_a_mask_is_cut_and_resampled_as_the_image() -> None:
    redraw = read(png(photo(100, 50)), png(mask(100, 50)), size=(100, 100)).redraw
    assert redraw is not None and redraw.shape == (100, 100)
    assert (redraw[:, :50] == 0).all() and (redraw[:, 50:] == 255).all()


def test_pasting_keeps_the_source_outside_the_mask_exactly() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 256, (16, 16, 3), np.uint8) for _ in range(2))
    weights = np.zeros((16, 16), np.uint8)
    weights[:, 8:] = 255
    weights[0, 0] = 51
    result = SourceImage(first, weights, SIZE, (0, 0, 1, 1)).paste(second)
    assert np.array_equal(result[1:, :8], first[1:, :8])
    assert np.array_equal(result[:, 8:], second[:, 8:])
    expected = np.rint(0.2 * second[0, 0] + 0.8 * first[0, 0])
    assert np.abs(result[0, 0] - expected).max() <= 1
    assert SourceImage(first, None, SIZE, (0, 0, 1, 1)).paste(second) is second


def test_the_largest_upload_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_image, "MAX_PIXELS", SIDE * SIDE)
    assert read(png()).uploaded == SIZE
    with pytest.raises(InvalidParams, match="65x64 pixels; at most 4096"):
        read(png(photo(65, SIDE)))
