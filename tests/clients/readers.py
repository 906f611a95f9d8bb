"""How programs read an answer: a reader takes what its program takes, and fails where that would fail.

A reader returns the files of the images that it finds.
"""

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

MODEL = "emoji-128"


@dataclass(frozen=True)
class Answer:
    """An answer of the service, and how links in it are fetched."""

    status: int
    content_type: str
    body: bytes
    fetch: Callable[[str], bytes]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def items(self) -> list[dict[str, Any]]:
        """The `data` of OpenAI's answers, which is never empty."""
        items: list[dict[str, Any]] = self.json["data"]
        assert items, "data is empty"
        return items


Reader = Callable[[Answer], list[bytes]]


def _decode(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _url(answer: Answer) -> list[bytes]:
    return [answer.fetch(item["url"]) for item in answer.items]


def _base64(answer: Answer) -> list[bytes]:
    return [_decode(item["b64_json"]) for item in answer.items]


def _first_base64(answer: Answer) -> list[bytes]:
    return [_decode(answer.items[0]["b64_json"])]


def _url_else_base64(answer: Answer) -> list[bytes]:
    return [
        answer.fetch(item["url"]) if item.get("url") else _decode(item["b64_json"]) for item in answer.items
    ]


def _url_and_base64(answer: Answer) -> list[bytes]:
    """Programs that take both: an item with both would be two images."""
    links = [answer.fetch(item["url"]) for item in answer.items if item.get("url")]
    return links + [_decode(item["b64_json"]) for item in answer.items if item.get("b64_json")]


def _base64_and_usage(answer: Answer) -> list[bytes]:
    usage = answer.json["usage"]
    counts = [usage[name] for name in ("input_tokens", "output_tokens", "total_tokens")]
    counts += [usage["input_tokens_details"][name] for name in ("text_tokens", "image_tokens")]
    assert all(type(count) is int for count in counts), usage
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0
    return _base64(answer)


def _checked_base64(answer: Answer) -> list[bytes]:
    """A schema in which optional fields may be absent, but not null."""
    content = answer.json
    assert type(content["created"]) is int
    for item in content["data"]:
        assert type(item["b64_json"]) is str
        assert all(type(item.get(name, "")) is str for name in ("revised_prompt", "url"))
    usage = content["usage"]
    details = usage["input_tokens_details"]
    counts = [usage[name] for name in ("total_tokens", "input_tokens", "output_tokens")]
    assert all(type(count) is int for count in [*counts, details["text_tokens"], details["image_tokens"]])
    return _base64(answer)


def _events(answer: Answer) -> list[bytes]:
    """Server-sent events: previews, and the image in the last one."""
    assert answer.content_type.startswith("text/event-stream"), answer.content_type
    *previews, completed = _read_events(answer.body.decode())
    assert [event["type"] for event in previews] == ["image_generation.partial_image"] * len(previews)
    assert [event["partial_image_index"] for event in previews] == sorted(
        {event["partial_image_index"] for event in previews}
    )
    assert completed["type"] == "image_generation.completed" and completed["usage"]["total_tokens"] > 0
    return [_decode(event["b64_json"]) for event in (*previews, completed)]


def _read_events(text: str) -> Iterator[dict[str, Any]]:
    for block in text.split("\n\n"):
        lines = [line.partition(": ") for line in block.splitlines() if not line.startswith(":")]
        data = "\n".join(value for name, _, value in lines if name == "data")
        if data and data != "[DONE]":
            event: dict[str, Any] = json.loads(data)
            assert ("event", ": ", event["type"]) in lines
            yield event


def _sdapi(answer: Answer) -> list[bytes]:
    assert type(answer.json["info"]) is str
    return [_decode(image) for image in answer.json["images"]]


def _sdapi_first(answer: Answer) -> list[bytes]:
    return [_decode(answer.json["images"][0])]


def _sdapi_info(answer: Answer) -> list[bytes]:
    info = json.loads(answer.json["info"])
    assert type(info["seed"]) is int and (info["width"], info["height"]) == (128, 128)
    last_line = info["infotexts"][0].split("\n")[-1]
    assert f"Seed: {info['seed']}," in last_line and "Steps: 22," in last_line
    return _sdapi_first(answer)


def _checkpoint(answer: Answer) -> list[bytes]:
    assert answer.json["sd_model_checkpoint"] == MODEL
    return []


def _sd_models(answer: Answer) -> list[bytes]:
    assert [(item["title"], item["model_name"]) for item in answer.json] == [(MODEL, MODEL)]
    return []


def _names(answer: Answer) -> list[bytes]:
    names = [item["name"] for item in answer.json]
    assert names and all(type(name) is str and name for name in names)
    return []


def _empty(answer: Answer) -> list[bytes]:
    assert answer.json == []
    return []


def _progress(answer: Answer) -> list[bytes]:
    """A program that waits for a model to be loaded until nothing is drawn."""
    assert 0.0 <= answer.json["progress"] <= 1.0 and type(answer.json["state"]["job_count"]) is int
    return []


def _ids(answer: Answer) -> list[bytes]:
    assert MODEL in [item["id"] for item in answer.items]
    return []


def _status(answer: Answer) -> list[bytes]:
    return []


# Readers of answers that hold images, and of others.
OF_IMAGES: dict[str, Reader] = {
    "data[].url": _url,
    "data[].b64_json": _base64,
    "data[0].b64_json": _first_base64,
    "data[].url, else b64_json": _url_else_base64,
    "data[].url and b64_json": _url_and_base64,
    "data[].b64_json, usage": _base64_and_usage,
    "data[].b64_json, all of it checked by a schema": _checked_base64,
    "events": _events,
    "images, info": _sdapi,
    "images[0]": _sdapi_first,
    "images[0], JSON.parse(info)": _sdapi_info,
}
READERS: dict[str, Reader] = OF_IMAGES | {
    "sd_model_checkpoint": _checkpoint,
    "[].title, model_name": _sd_models,
    "[].name": _names,
    "an empty list": _empty,
    "progress, state.job_count": _progress,
    "data[].id": _ids,
    "the status": _status,
}
