"""Takes the image and the mask of an edit out of a request's fields, whichever way they were sent."""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from safelight.service.errors import InvalidRequest

IMAGE_NAME = re.compile(r"images?(?:\[[0-9]*\])?")  # image, image[], images, image[0]
MASK_NAME = re.compile(r"mask(?:\[\])?")
DATA_URL = re.compile(r"data:[^,]*?;base64,", re.IGNORECASE)
URL_KEYS = ("image_url", "url", "b64_json")  # of an object that holds an image


@dataclass(frozen=True, slots=True)
class EditFields:
    """The parts of a request for edits."""

    image: bytes
    mask: bytes | None
    others: dict[str, object]  # the fields of any request for images, and `strength`


def split_fields(fields: Iterable[tuple[str, object]]) -> EditFields:
    """The parts of a request with these fields, of which some may be repeated.

    Raises `InvalidRequest` unless there is exactly one image and at most one mask.
    """
    images: list[object] = []
    masks: list[object] = []
    others: dict[str, object] = {}
    for name, value in fields:
        if IMAGE_NAME.fullmatch(name):
            images += _items(value)
        elif MASK_NAME.fullmatch(name):
            masks += _items(value)
        else:
            others[name] = _text(name, value)
    if not images:
        raise InvalidRequest("image is required: the image that is to be edited.", "image")
    image, mask = _only(images, "image"), _only(masks, "mask") if masks else None
    return EditFields(_content(image, "image"), None if mask is None else _content(mask, "mask"), others)


def _text(name: str, value: object) -> object:
    """A field's value; the text of a file that was sent as another field."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"{name[:100]} must be text, not a file.", name[:100]) from None


def _items(value: object) -> list[object]:
    """A value that may be a list, as one; null is nothing."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if item is not None]


def _only(values: list[object], name: str) -> object:
    if len(values) > 1:
        raise InvalidRequest(f"{name}: one {name} can be used at a time; got {len(values)}.", name)
    return values[0]


def _content(value: object, name: str) -> bytes:
    """The bytes of a file: as they are, in base64, as a `data:` URL, or an object with one of these."""
    for _ in range(2):  # {"image_url": {"url": ...}} at most
        if isinstance(value, Mapping):
            value = _inner(value, name)
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a file, or a data: URL in JSON.", name)
    if re.match(r"\s*(?:https?|file|ftp):", value, re.IGNORECASE):
        raise InvalidRequest(
            f"{name}: addresses are not fetched; send the image itself, as a file or a data: URL.", name
        )
    try:
        return base64.b64decode(re.sub(r"\s", "", DATA_URL.sub("", value.lstrip(), count=1)), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{name} is not valid base64.", name) from None


def _inner(value: Mapping[str, object], name: str) -> object:
    if value.get("file_id") is not None:
        raise InvalidRequest(f"{name}: there is no store of files; send the image itself.", name)
    url = next((value[key] for key in URL_KEYS if value.get(key) is not None), None)
    if url is None:
        raise InvalidRequest(f"{name} must have an image_url: a data: URL.", name)
    return url
