"""Image files: pixels, quality, and the metadata as other programs read it."""

import hashlib
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from safelight.pipeline.engine import xmp
from safelight.pipeline.engine.image_files import FORMATS, encode_image, encode_preview
from safelight.pipeline.engine.image_metadata import parameters_json, parameters_text
from safelight.pipeline.params import EditParams, GenerationParams
from tests.pipeline.engine.metadata_readers import automatic1111, civitai
from tests.pipeline.parts import params

SOURCE_TYPE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
AI_MADE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
AI_EDITED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
EXACT = "{urn:safelight:1.0/}parameters"
HAS_EXTENSION = "{http://ns.adobe.com/xmp/note/}HasExtendedXMP"
PIXELS = np.arange(64 * 48 * 3, dtype=np.uint8).reshape(48, 64, 3)

# Pieces of prompts and names that mean something to some reader.
PIECES = (
    "apple", " ", "\n", "\n\n", "\r\n", "\u2028", "\t", "\x00", ",", ":", '"', "\\", "{", "}", "[", "]", "🍎",
    "\ud83c", "Negative prompt:", "Negative prompt: pear", "Steps: 4, Seed: 99", "Steps:", "Size: 1x2",
    "Template: ", "Negative Template: x", ", Hashes: {bad}", "Resources: ", "Hashed prompt: ",
    ", Civitai resources: [bad]", "128x128", "(x:1.3)", "<lora:x:1>",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


@given(prompt=TEXTS, negative=TEXTS, name=TEXTS)
@example("apple\nNegative prompt: pear", "", "PixArt, Steps: 4, Seed: 99")
@example("Steps: 4, Seed: 99", "Negative prompt: x", 'the "best", Hashes: {x}')
@example("apple\nSteps: 4, Sampler: x, CFG scale: 1, Seed: 99, Size: 1x1, Model: y", "", "a\nSeed: 4")
def test_no_text_is_read_as_a_setting(prompt: str, negative: str, name: str) -> None:
    """Whatever prompt, negative prompt and model are called, both readers find the settings of the image."""
    request_params = params(
        prompt=prompt, negative_prompt=negative, num_steps=20, seed=7, guidance_rescale=0.25
    )
    text = parameters_text(request_params, name)
    read = automatic1111(text)
    settings = {"Steps": "20", "Sampler": "dpmpp_2m", "CFG scale": "4", "Seed": "7", "CFG rescale": "0.25"}
    settings |= {"Image index": "0", "Size-1": "64", "Size-2": "64"}
    assert {key: read.get(key) for key in settings} == settings
    assert set(read) - set(settings) <= {"Prompt", "Negative prompt", "Model", "Model-1", "Model-2"}
    assert "pear" not in read["Negative prompt"] or "pear" in negative
    assert civitai(text) == civitai(text) | {
        "Steps": "20", "Sampler": "dpmpp_2m", "CFG scale": "4", "Seed": "7", "Size": "64x64"
    }  # fmt: skip
    assert not civitai(text)["negativePrompt"] or negative
    exact = json.loads(parameters_json(request_params, name))
    assert (exact["prompt"], exact["negative_prompt"], exact["model"]) == (prompt, negative, name)


@pytest.mark.parametrize(
    "name",
    [
        "emoji-128", "PixArt, Steps: 4, Seed: 99", 'a "good" one',
        "C:\\models\\x", "a\nb", "日本, モデル", '"', "\\",
        " spaced ", "a\u2028b", "x: {y}", "Hashes: {}", "tab\tname", '\\",', "🍎: apple",
    ],
)  # fmt: skip
def test_every_model_name_is_read_back(name: str) -> None:
    read = automatic1111(parameters_text(params(), name))
    assert read["Model"] == name
    assert set(civitai(parameters_text(params(), name))) == {
        "Steps", "Sampler", "CFG scale", "Seed", "Image index", "Size", "Model", "prompt", "negativePrompt"
    }  # fmt: skip


@pytest.mark.parametrize(
    "prompt",
    [
        "a red apple", "Steps: 4, Seed: 99", "red\napple", "apple, Steps: 4, Sampler: x, Seed: 99",
        'a sign that says "Steps: 4"', "one\n\nthree", "Template: x", "ein Käse, 日本の林檎",
        "(red:1.3), \\(x\\)",
        "a\u2028b", "negative prompt: x", "🍎",
    ],
)  # fmt: skip
def test_every_prompt_is_read_back(prompt: str) -> None:
    """By both readers, unless it holds the words that start a negative prompt; CivitAI drops empty lines."""
    text = parameters_text(params(prompt=prompt, negative_prompt=f"not {prompt}"), "tiny")
    read = automatic1111(text)
    assert (read["Prompt"], read["Negative prompt"]) == (prompt, f"not {prompt}")
    assert civitai(text)["prompt"] == prompt.replace("\n\n", "\n")


def test_the_words_of_a_negative_prompt_inside_a_prompt() -> None:
    text = parameters_text(params(prompt="apple\nNegative prompt: pear", negative_prompt="plum"), "tiny")
    assert automatic1111(text)["Prompt"] == civitai(text)["prompt"] == "apple\nNegative prompt : pear"
    assert automatic1111(text)["Negative prompt"] == civitai(text)["negativePrompt"] == "plum"


def test_parameters_text() -> None:
    assert parameters_text(params(negative_prompt="blurry", width=96), "tiny").splitlines() == [
        "a red apple",
        "Negative prompt: blurry",
        "Steps: 6, Sampler: dpmpp_2m, CFG scale: 4, Seed: 1, Image index: 0, Size: 96x64, Model: tiny",
    ]


def test_parameters_json() -> None:
    """The fields of the HTTP API, so that the object can be sent again."""
    request_params = params(guidance_interval=(0.1, 0.9), eta=0.5)
    assert json.loads(parameters_json(request_params, "tiny")) == {
        "model": "tiny", "prompt": "a red apple", "negative_prompt": "", "size": "64x64", "seed": 1,
        "num_inference_steps": 6, "guidance_scale": 4.0, "guidance_interval": [0.1, 0.9],
        "guidance_stride": 1,
        "guidance_rescale": 0.0, "solver": "dpmpp_2m", "timestep_spacing": "trailing", "eta": 0.5,
        "image_index": 0,
    }  # fmt: skip


LONG = params(prompt="🍎" * 4000, negative_prompt="🚗" * 32_000)
AWKWARD = params(prompt="a\x00<b>&\ud83c\ufffe\nNegative prompt: c", negative_prompt="blurry")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "request_params", [params(prompt="ein Käse, 日本の林檎"), AWKWARD, LONG], ids=["plain", "awkward", "long"]
)
def test_files_carry_their_parameters_and_nothing_else(format: str, request_params: GenerationParams) -> None:
    data = encode_image(PIXELS, format, 90, request_params, "tiny")
    assert data == encode_image(PIXELS, format, 90, request_params, "tiny")
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size) == (format.upper(), (64, 48))
    text, exact = parameters_text(request_params, "tiny"), parameters_json(request_params, "tiny")
    assert json.loads(exact)["prompt"] == request_params.prompt
    if format == "png":
        assert isinstance(image, PngImageFile)
        assert image.text["parameters"] == text and image.text["safelight"] == exact
        assert set(image.text) == {"parameters", "safelight", "XML:com.adobe.xmp"}
        assert properties(image.info["xmp"]) == {SOURCE_TYPE: AI_MADE}
        assert np.array_equal(np.asarray(image), PIXELS)
    else:
        assert comment_of(image) == text
        assert xmp_of(data, image) == {SOURCE_TYPE: AI_MADE, EXACT: exact}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("is_inpainting", [False, True])
def test_a_file_says_that_it_was_edited(format: str, is_inpainting: bool) -> None:
    edited = params(edit=EditParams(0.625, is_inpainting))
    data = encode_image(PIXELS, format, 90, edited, "tiny")
    exact = json.loads(parameters_json(edited, "tiny"))
    assert (exact["strength"], exact["inpainting"]) == (0.625, is_inpainting)
    read = automatic1111(parameters_text(edited, "tiny"))
    assert (read["Denoising strength"], "Inpainting" in read) == ("0.625", is_inpainting)
    assert xmp_of(data, Image.open(io.BytesIO(data)))[SOURCE_TYPE] == AI_EDITED


@pytest.mark.parametrize("format", FORMATS)
def test_the_mark_can_be_left_out(format: str) -> None:
    data = encode_image(PIXELS, format, 90, params(), "tiny", is_marked=False)
    image = Image.open(io.BytesIO(data))
    exact = {} if format == "png" else {EXACT: parameters_json(params(), "tiny")}
    assert xmp_of(data, image) == exact and b"trainedAlgorithmicMedia" not in data
    assert (image.info.get("xmp") is None) == (format == "png")


@pytest.mark.parametrize("format", FORMATS)
def test_exiftool_reads_mark_and_parameters(exiftool: str, tmp_path: Path, format: str) -> None:
    """An independent reader: short and long parameters, exact to the character."""
    for request_params in (AWKWARD, LONG):
        path = tmp_path / f"x.{format}"
        path.write_bytes(encode_image(PIXELS, format, 95, request_params, "tiny"))
        [tags] = json.loads(read_tags(exiftool, "-j", "-G1", "-n", str(path)))
        assert "ExifTool:Error" not in tags and "ExifTool:Warning" not in tags
        assert tags["XMP-iptcExt:DigitalSourceType"] == AI_MADE
        name = "-Safelight" if format == "png" else "-XMP-safelight:Parameters"
        assert read_tags(exiftool, "-b", name, str(path)) == parameters_json(request_params, "tiny")


def read_tags(*command: str) -> str:
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


@pytest.fixture
def exiftool() -> str:
    program = shutil.which("exiftool")
    assert program is not None
    return program


def test_lossless_webp_and_unknown_formats() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for quality in (90, 99, 100):
        assert np.array_equal(decoded(encode_image(pixels, "webp", quality, params(), "tiny")), pixels)
    assert not np.array_equal(decoded(encode_image(pixels, "webp", 89, params(), "tiny")), pixels)
    with pytest.raises(ValueError, match="png, webp, jpeg"):
        encode_image(pixels, "gif", 100, params(), "tiny")


@pytest.mark.parametrize(("quality", "max_error"), [(90, 60), (95, 30), (99, 10), (100, 4)])
def test_good_jpeg_keeps_colour_at_full_resolution(quality: int, max_error: int) -> None:
    """Stripes of red and blue, one pixel wide: at half resolution they are one colour, 127 from both."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, ::2, 0] = pixels[:, 1::2, 2] = 255
    error = np.abs(decoded(encode_image(pixels, "jpeg", quality, params(), "tiny")) - pixels).max()
    assert error <= max_error
    coarse = np.abs(decoded(encode_image(pixels, "jpeg", 89, params(), "tiny")) - pixels).max()
    assert coarse > 100


@pytest.mark.parametrize(("format", "best"), [("webp", 89), ("jpeg", 99)])
def test_quality_is_paid_in_bytes(format: str, best: int) -> None:
    """A better quality is a larger file nearer to the pixels; PNG is lossless and does not know it."""
    pixels = textured_pixels()
    files = {
        quality: encode_image(pixels, format, quality, params(), "tiny") for quality in (0, 30, 75, best)
    }
    sizes = [len(file) for file in files.values()]
    errors = [np.square(decoded(file) - pixels).mean() for file in files.values()]
    assert sizes == sorted(sizes) and sizes[-1] > 2 * sizes[0]
    assert errors == sorted(errors, reverse=True) and errors[0] > 3 * errors[-1] > 0.0
    assert errors[-1] < 150.0  # of 255 squared: colours have half the resolution
    png = encode_image(pixels, "png", 100, params(), "tiny")
    assert png == encode_image(pixels, "png", 0, params(), "tiny")
    assert np.array_equal(decoded(png), pixels)


def textured_pixels() -> np.ndarray:
    """Waves of every colour and some noise (H, W, 3) uint8, as an image that is no square."""
    y, x = np.mgrid[:48, :80]
    waves = np.stack([np.sin(x / 7.0), np.sin(y / 5.0), np.sin((x + 2 * y) / 9.0)], axis=-1)
    noisy = 127.5 + 100.0 * waves + np.random.default_rng(0).normal(0.0, 12.0, waves.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def decoded(file: bytes) -> np.ndarray:
    """The pixels (H, W, 3) of an image file, as whole numbers that can be negative."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).astype(int)


def comment_of(image: Image.Image) -> str:
    """EXIF UserComment, whose first eight bytes name its code."""
    comment: bytes = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment.startswith(b"UNICODE\0")
    return comment[8:].decode("utf-16-be")


def xmp_of(data: bytes, image: Image.Image) -> dict[str, Any]:
    """The XMP properties of a file, with those of a JPEG's extension."""
    packet = image.info.get("xmp")
    result = {} if packet is None else properties(packet)
    digest = result.pop(HAS_EXTENSION, None)
    if digest is not None:
        extension = b"".join(extension_parts(data, digest))
        assert hashlib.md5(extension).hexdigest().upper() == digest
        result |= properties(extension)
    return result


def extension_parts(data: bytes, digest: str) -> Iterator[bytes]:
    """The parts of the extended XMP of a JPEG file, by the lengths and offsets that they name."""
    offset = 2
    while data[offset : offset + 2] != b"\xff\xda":  # the pixels start
        length = int.from_bytes(data[offset + 2 : offset + 4], "big")
        body = data[offset + 4 : offset + 2 + length]
        head = b"http://ns.adobe.com/xmp/extension/\0" + digest.encode()
        if data[offset : offset + 2] == b"\xff\xe1" and body.startswith(head):
            yield body[len(head) + 8 :]
        offset += 2 + length


def properties(packet: bytes) -> dict[str, Any]:
    """The properties of an RDF document, by their full names."""
    text = packet.decode()
    assert text.startswith(("<?xpacket begin", "<x:xmpmeta"))
    [description] = ElementTree.fromstring(text).iter(
        "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
    )
    return {element.tag: element.text for element in description}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("is_edit", "is_marked", "mark"),
    [(False, True, xmp.AI_MARK), (True, True, xmp.EDIT_MARK), (False, False, None), (True, False, None)],
)
def test_a_preview_has_the_mark_of_its_image_and_no_parameters(
    format: str, is_edit: bool, is_marked: bool, mark: str | None
) -> None:
    data = encode_preview(PIXELS, format, 90, is_edit, is_marked)
    marks = [mark for mark in (xmp.AI_MARK, xmp.EDIT_MARK) if mark.encode() in data]
    assert marks == ([] if mark is None else [mark])
    assert b"safelight:parameters" not in data and b"Steps:" not in data
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size) == (format.upper(), (PIXELS.shape[1], PIXELS.shape[0]))
    if format == "png":
        assert np.array_equal(decoded(data), PIXELS)


def test_a_previews_quality_is_limited() -> None:
    for format in ("webp", "jpeg"):
        best, limited, low = (encode_preview(PIXELS, format, quality) for quality in (100, 80, 20))
        assert best == limited != low
