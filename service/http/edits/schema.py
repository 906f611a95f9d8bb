"""The OpenAPI schema of a request for edits: a form with files, or JSON with `data:` URLs."""

from typing import Any

from safelight.service.http.edits.params import INPAINTING_STRENGTH, STRENGTH

Schema = dict[str, Any]

DATA_URL: Schema = {"type": "string", "description": "The file as a `data:` URL, or in base64."}
IMAGE_OBJECT: Schema = {
    "type": "object", "properties": {"image_url": DATA_URL}, "required": ["image_url"],
}  # fmt: skip
IMAGE_TEXT = "A PNG, JPEG or WebP file of at most 25 million pixels."
MASK_TEXT = (
    "Of the same size: what is transparent is redrawn; in a mask without transparency, what is white. "
    "Everything else stays as it is, to the pixel."
)
OWN_FIELDS: Schema = {
    "strength": {
        "anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "null"}],
        "default": None,
        "description": "Extension: the share of the steps that are taken, from the source with as much noise "
        f"as belongs there; 1 starts from noise alone. Default {STRENGTH:g}, with a mask "
        f"{INPAINTING_STRENGTH:g}.",
    },
    "input_fidelity": {
        "anyOf": [{"type": "string", "enum": ["low", "high"]}, {"type": "null"}],
        "default": None,
        "description": "Accepted for OpenAI's clients and ignored: see strength.",
    },
}


def edit_request_body(generation: Schema) -> Schema:
    """The schema of the body, from that of a body for generations."""
    request: Schema = generation["requestBody"]["content"]["application/json"]["schema"]
    in_json = request | {"properties": request["properties"] | OWN_FIELDS | _json_images()}
    in_form = request | {
        "properties": request["properties"] | OWN_FIELDS | _files(),
        "required": [*request.get("required", []), "image"],
    }
    content = {"multipart/form-data": {"schema": in_form}, "application/json": {"schema": in_json}}
    return {"requestBody": {"required": True, "content": content}}


def _json_images() -> Schema:
    one = {"anyOf": [DATA_URL, IMAGE_OBJECT]}
    return {
        "image": one | {"description": IMAGE_TEXT + " Either this or `images`."},
        "images": {"type": "array", "items": one, "minItems": 1, "maxItems": 1, "description": IMAGE_TEXT},
        "mask": {"anyOf": [*one["anyOf"], {"type": "null"}], "description": MASK_TEXT},
    }


def _files() -> Schema:
    file = {"type": "string", "format": "binary"}
    return {
        "image": file | {"description": IMAGE_TEXT + " Also under the name `image[]`."},
        "mask": file | {"description": MASK_TEXT},
    }
