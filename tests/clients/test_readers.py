"""The readers fail where the programs would, and the payloads are complete."""

import base64
import io
import json
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.clients.images import check_images, upload
from tests.clients.payloads import read_conversations
from tests.clients.readers import OF_IMAGES, READERS, Answer

CONVERSATIONS = read_conversations()
FILE = base64.b64encode(upload()).decode()
CLIENTS = {
    "Open WebUI",
    "LibreChat",
    "n8n",
    "SillyTavern",
    "Dify",
    "Nextcloud",
    "Spring AI",
    "Cherry Studio",
    "big-AGI",
}


def answer(content: Any, content_type: str = "application/json") -> Answer:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Answer(200, content_type, body, lambda url: url.encode())


def test_the_payloads_are_of_these_programs_and_name_their_source() -> None:
    assert {conversation.client for conversation in CONVERSATIONS} == CLIENTS
    assert all("commit" in conversation.source for conversation in CONVERSATIONS)
    assert len(set(map(str, CONVERSATIONS))) == len(CONVERSATIONS)


def test_every_conversation_ends_with_an_image_and_every_reader_is_used() -> None:
    names = [[request.reads for request in conversation.requests] for conversation in CONVERSATIONS]
    assert {name for group in names for name in group} == READERS.keys()
    assert all(any(name in OF_IMAGES for name in group) for group in names)


BAD: dict[str, list[Any]] = {
    "data[].url": [{"data": []}, {"data": [{"b64_json": FILE}]}],
    "data[].b64_json": [{"data": []}, {"data": [{"url": "a"}]}, {"data": [{"b64_json": "?"}]}],
    "data[0].b64_json": [{"data": []}, {"data": [{"url": "a"}]}],
    "data[].url, else b64_json": [{"data": []}, {"data": [{"url": None}]}],
    "data[].url and b64_json": [{"data": []}, {}],
    "data[].b64_json, usage": [{"data": [{"b64_json": FILE}]}],
    "data[].b64_json, all of it checked by a schema": [
        {"created": 1, "data": [{"b64_json": FILE, "url": None}]},
        {"created": 1, "data": [{"b64_json": FILE}], "usage": {"total_tokens": 1}},
    ],
    "events": [{"data": [{"b64_json": FILE}]}],
    "images, info": [{"images": [FILE]}, {"images": ["?"], "info": ""}],
    "images[0]": [{"images": []}],
    "images[0], JSON.parse(info)": [{"images": [FILE], "info": ""}, {"images": [FILE], "info": "{}"}],
    "sd_model_checkpoint": [{}, {"sd_model_checkpoint": "other"}],
    "[].title, model_name": [[], [{"title": "emoji-128"}]],
    "[].name": [[], [{"label": "x"}]],
    "an empty list": [{}, [1]],
    "progress, state.job_count": [{"progress": 0}, {"progress": 2, "state": {"job_count": 0}}],
    "data[].id": [{"data": []}, {"data": [{"id": "other"}]}],
}


@pytest.mark.parametrize("name", [name for name in READERS if name != "the status"])
def test_a_reader_fails_without_what_it_reads(name: str) -> None:
    for content in [{"error": {"message": "no"}}, *BAD[name]]:
        with pytest.raises((AssertionError, KeyError, TypeError, IndexError, ValueError)):
            READERS[name](answer(content))


def test_an_item_with_a_link_and_an_image_is_two_images_for_programs_that_take_both() -> None:
    files = READERS["data[].url and b64_json"](answer({"data": [{"url": "a", "b64_json": FILE}]}))
    assert files == [b"a", upload()]


@pytest.mark.parametrize("name", ["images, info", "data[].b64_json"])
def test_a_reader_returns_the_files(name: str) -> None:
    content = {"images": [FILE], "info": "{}", "data": [{"b64_json": FILE}]}
    assert READERS[name](answer(content)) == [upload()]


def test_an_image_is_judged_by_its_number_format_size_and_colours() -> None:
    with pytest.raises(AssertionError, match="0 images"):
        check_images([])
    with pytest.raises(AssertionError, match="PNG of \\(300, 200\\)"):
        check_images([upload()])
    with pytest.raises(AssertionError, match="PNG of"):
        check_images([upload()], format="WEBP")


def test_an_image_is_judged_by_the_seed_that_it_says() -> None:
    image = Image.linear_gradient("L").resize((128, 128))
    parameters, file = PngInfo(), io.BytesIO()
    parameters.add_text("parameters", "a red apple\nSteps: 4, Seed: 77, Size: 128x128")
    image.save(file, "PNG", pnginfo=parameters)
    check_images([file.getvalue()], seed=77)
    with pytest.raises(AssertionError, match="another seed"):
        check_images([file.getvalue()], seed=7)
