"""The Python API: `safelight.Pipeline` in the embedded tiny model."""

import asyncio
import base64
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from starlette.testclient import TestClient

import safelight
from safelight.service import cli
from safelight.service.http.gateway import build_gateway
from safelight.service.http.schemas import ImageRequest
from safelight.service.settings import Settings
from tests.broken import tiny_without
from tests.service.conftest import ROUTE
from tests.service.http.uploads import mask, photo, png
from tests.service.inprocess_backend import InProcessBackend

REQUEST: dict[str, Any] = {"seed": 5, "num_inference_steps": 2, "guidance_scale": 3.0, "n": 2}


@pytest.fixture(scope="module")
def pipeline() -> Iterator[safelight.Pipeline]:
    with safelight.Pipeline("tiny") as pipeline:
        yield pipeline


def test_the_bytes_are_those_of_the_command_line_and_of_the_service(
    pipeline: safelight.Pipeline, tmp_path: Path
) -> None:
    images = pipeline.generate("a red apple", **REQUEST)
    argv = ["generate", "a red apple", "--model", "tiny", "--seed", "5", "--steps", "2"]
    assert cli.main([*argv, "--guidance-scale", "3", "-n", "2", "-o", str(tmp_path / "apple.png")]) == 0
    assert [image.bytes for image in images] == [
        (tmp_path / f"apple-{index}.png").read_bytes() for index in range(2)
    ]
    backend = InProcessBackend(pipeline._stages)
    with TestClient(build_gateway(backend, pipeline._model, Settings(model="tiny"))) as client:
        response = client.post(ROUTE, json={"prompt": "a red apple", **REQUEST}).json()
    assert [image.bytes for image in images] == [
        base64.b64decode(image["b64_json"]) for image in response["data"]
    ]
    usage, expected = images.usage.model_dump(mode="json"), response["usage"]
    for report in (usage, expected):
        for name in ("seconds", "device_seconds", "queue_seconds", "flops"):  # later texts are cached
            del report["safelight"][name]
        for name in ("promised_seconds", "forecast_seconds"):  # the service's
            report["safelight"].pop(name, None)
    assert usage == expected


def test_edits_have_the_bytes_of_the_command_line_and_of_the_service(
    pipeline: safelight.Pipeline, tmp_path: Path
) -> None:
    files = {"image": png(), "mask": png(mask())}
    for name, file in files.items():
        (tmp_path / f"{name}.png").write_bytes(file)
    options: dict[str, Any] = {"seed": 5, "num_inference_steps": 4, "n": 2}
    images = pipeline.edit("a red apple", files["image"], files["mask"], strength=0.5, **options)
    assert (images.usage.safelight.nfe, images[0].width, images[0].height) == (4, 64, 64)
    again = pipeline.edit("a red apple", photo(), tmp_path / "mask.png", strength=0.5, **options)
    assert [image.bytes for image in again] == [image.bytes for image in images]
    argv = ["generate", "a red apple", "--model", "tiny", "--seed", "5", "--steps", "4", "-n", "2"]
    argv += ["--image", str(tmp_path / "image.png"), "--mask", str(tmp_path / "mask.png")]
    assert cli.main([*argv, "--strength", "0.5", "-o", str(tmp_path / "edited.png")]) == 0
    assert [image.bytes for image in images] == [
        (tmp_path / f"edited-{index}.png").read_bytes() for index in range(2)
    ]
    backend = InProcessBackend(pipeline._stages)
    with TestClient(build_gateway(backend, pipeline._model, Settings(model="tiny"))) as client:
        fields = {"prompt": "a red apple", "strength": 0.5} | options
        response = client.post("/v1/images/edits", data=fields, files=files).json()
    assert [image.bytes for image in images] == [
        base64.b64decode(image["b64_json"]) for image in response["data"]
    ]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("/nowhere.png", "image cannot be read: .*No such file"),
        (b"text", "image must be a PNG, JPEG or WebP file"),
        (3, "image cannot be read"),
    ],
)
def test_an_image_that_cannot_be_edited_is_named(
    pipeline: safelight.Pipeline, image: Any, message: str
) -> None:
    with pytest.raises(safelight.SafelightError, match=message) as error:
        pipeline.edit("a red apple", image)
    assert error.value.param == "image"


def test_images_are_a_list_with_their_usage(pipeline: safelight.Pipeline, tmp_path: Path) -> None:
    images = pipeline.generate("a red apple", **REQUEST)
    assert len(images) == 2 and images[0].pil.tobytes() != images[1].pil.tobytes()
    assert images.usage.safelight.nfe == 4
    for index, image in enumerate(images):
        assert (image.seed, image.width, image.height, image.format) == (5, 64, 64, "png")
        assert image.pil.size == (64, 64)
        assert len(repr(image)) < 200
        image.save(tmp_path / f"{index}.png")
        assert (tmp_path / f"{index}.png").read_bytes() == image.bytes


def test_a_file_is_saved_under_a_suffix_of_its_format(pipeline: safelight.Pipeline, tmp_path: Path) -> None:
    [image] = pipeline.generate("a red apple", num_inference_steps=1, output_format="webp")
    image.save(tmp_path / "apple.webp")
    assert (tmp_path / "apple.webp").read_bytes()[8:12] == b"WEBP"
    with pytest.raises(safelight.SafelightError, match="saved as .webp; got 'apple.png'"):
        image.save(tmp_path / "apple.png")
    with pytest.raises(safelight.SafelightError, match="there is no folder"):
        image.save(tmp_path / "nowhere" / "apple.webp")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"size": "7x7"}, "size"),
        ({"solver": "magic"}, "solver"),
        ({"colour": "red"}, "colour"),
        ({"prompt": " "}, "prompt"),
    ],
)
def test_an_invalid_option_is_named(
    pipeline: safelight.Pipeline, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(safelight.SafelightError, match=param) as refusal:
        pipeline.generate(**{"prompt": "a red apple"} | options)
    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "nosuch"}, "'nosuch' is neither a folder nor one of"),
        ({"model": "tiny", "denoise_threads": -1}, "denoise_threads must be at least 0"),
        ({"model": "tiny", "colour": "red"}, "colour is not a setting"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(safelight.SafelightError, match=message):
        safelight.Pipeline(**arguments)


def test_a_broken_checkpoint_is_refused_with_the_tensors_name(tmp_path: Path) -> None:
    with pytest.raises(safelight.SafelightError, match="proj_out.weight"):
        safelight.Pipeline(tiny_without("proj_out.weight", tmp_path))


async def test_it_draws_inside_a_running_event_loop(pipeline: safelight.Pipeline) -> None:
    expected = pipeline.generate("a red apple", **REQUEST)  # on this thread, which the loop waits for
    calls = (asyncio.to_thread(pipeline.generate, "a red apple", **REQUEST) for _ in range(2))
    for images in await asyncio.gather(*calls):
        assert [image.bytes for image in images] == [image.bytes for image in expected]


def test_a_closed_pipeline_draws_nothing() -> None:
    pipeline = safelight.Pipeline("tiny")
    errors: list[BaseException] = []

    def draw() -> None:
        try:
            pipeline.generate("a red apple", num_inference_steps=200, n=10)
        except safelight.SafelightError as error:
            errors.append(error)

    thread = threading.Thread(target=draw)
    thread.start()
    while not pipeline._stages.denoiser.status().ticks:
        pass
    pipeline.close()
    thread.join(timeout=30)
    assert [str(error) for error in errors] == ["the pipeline was closed while the image was drawn"]
    pipeline.close()
    with pytest.raises(safelight.SafelightError, match="the pipeline is closed"):
        pipeline.generate("a red apple")


def test_its_options_are_the_fields_of_a_request() -> None:
    ignored = {
        name
        for name, field in ImageRequest.model_fields.items()
        if "ignored" in (field.description or "") and name != "output_compression"
    }
    elsewhere = {"prompt", "model", "response_format", "stream", "partial_images"}
    elsewhere |= {"background", "user", "safety_identifier"}
    elsewhere |= {"deadline_ms", "priority"}  # nobody else's requests are in this process
    expected = ImageRequest.model_fields.keys() - ignored - elsewhere
    assert get_type_hints(safelight.RequestOptions).keys() == expected


def test_the_import_alone_loads_no_library() -> None:
    code = (
        "import sys, safelight; dir(safelight);"
        "sys.exit(' '.join({'torch', 'pydantic', 'numpy', 'asyncio'} & set(sys.modules)) or None)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")


def test_a_name_that_is_not_exported_is_an_attribute_error() -> None:
    assert set(safelight.__all__) <= set(dir(safelight))
    with pytest.raises(AttributeError, match="has no attribute 'Painter'"):
        safelight.Painter  # noqa: B018
