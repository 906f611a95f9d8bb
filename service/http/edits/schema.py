"""The OpenAPI schema of a request for edits: a form with files, or JSON with `data:` URLs."""

from typing import Any

from safelight.service.http.edits.params import INPAINTING_STRENGTH, STRENGTH
from safelight.service.http.reading.numbers import number_pattern
from safelight.service.http.reading.schema import BLANK, NULL, text_schema

Schema = dict[str, Any]

DATA_FORMAT = "image-data"
FILE_TYPES = "image/png, image/jpeg, image/webp"
DATA_URL: Schema = {
    "type": "string", "format": DATA_FORMAT, "description": "The file as a `data:` URL, or in base64.",
}  # fmt: skip
IMAGE_OBJECT: Schema = {
    "type": "object", "properties": {"image_url": DATA_URL}, "required": ["image_url"],
}  # fmt: skip
ONE_IMAGE: list[Schema] = [DATA_URL, IMAGE_OBJECT]
ANY_IMAGE: list[Schema] = [
    *ONE_IMAGE,
    {"type": "array", "items": {"anyOf": ONE_IMAGE}, "minItems": 1, "maxItems": 1},
]
NOTHING: list[Schema] = [NULL, {"type": "array", "items": NULL}]
SHARE: list[Schema] = [
    {"type": "number", "minimum": 0, "maximum": 1},
    text_schema(number_pattern(1)),
    BLANK,
    NULL,
]
IMAGE_TEXT = "A PNG, JPEG or WebP file of at most 25 million pixels."
MASK_TEXT = (
    "Of the same size: what is transparent is redrawn; in a mask without transparency, what is white. "
    "Everything else stays as it is, to the pixel."
)
OWN_FIELDS: Schema = {
    "strength": {
        "anyOf": SHARE,
        "default": None,
        "description": "Extension: the share of the steps that are taken, from the source with as much noise "
        f"as belongs there; 1 starts from noise alone. Default {STRENGTH:g}, with a mask "
        f"{INPAINTING_STRENGTH:g}.",
    },
    "denoising_strength": {"anyOf": SHARE, "description": "Another server's name: read as strength."},
    "input_fidelity": {
        "anyOf": [{"type": "string", "enum": ["low", "high", ""]}, NULL],
        "default": None,
        "description": "Accepted for OpenAI's clients and ignored: see strength.",
    },
}


def edit_request_body(generation: Schema) -> Schema:
    """The schema of the body, from that of a body for generations."""
    request: Schema = generation["requestBody"]["content"]["application/json"]["schema"]
    in_json = request | {
        "properties": request["properties"] | OWN_FIELDS | _json_images(),
        "oneOf": [_with_one_of("image", "images"), _with_one_of("images", "image")],
    }
    in_form = request | {
        "properties": request["properties"] | OWN_FIELDS | _files(),
        "required": [*request.get("required", []), "image"],
    }
    encoding = {"image": {"contentType": FILE_TYPES}, "mask": {"contentType": FILE_TYPES}}
    content = {
        "multipart/form-data": {"schema": in_form, "encoding": encoding},
        "application/json": {"schema": in_json},
    }
    return {"requestBody": {"required": True, "content": content}}


def _json_images() -> Schema:
    return {
        "image": {"description": IMAGE_TEXT + " Either this or `images`."},
        "images": {"description": IMAGE_TEXT},
        "mask": {"anyOf": [*ANY_IMAGE, *NOTHING], "description": MASK_TEXT},
    }


def _with_one_of(name: str, other: str) -> Schema:
    """The schema of objects with an image in the field `name` and none in `other`."""
    return {"required": [name], "properties": {name: {"anyOf": ANY_IMAGE}, other: {"anyOf": NOTHING}}}


def _files() -> Schema:
    file = {"type": "string", "format": "binary"}
    return {
        "image": file | {"description": IMAGE_TEXT + " Also under the name `image[]`."},
        "mask": file | {"description": MASK_TEXT},
    }
