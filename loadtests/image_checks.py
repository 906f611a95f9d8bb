"""Checks whether an answer holds the requested images."""

import base64
import binascii
import io
from typing import Any

from PIL import Image, UnidentifiedImageError

from loadtests.traces import Body


def fault_of(body: Body, answer: dict[str, Any]) -> str | None:
    """What is wrong with a 200 answer to `body`, or None. Every image is decoded completely."""
    num_images = body.get("n", 1)
    items = answer.get("data", [])
    if len(items) != num_images:
        return f"{len(items)} images instead of {num_images}"
    for item in items:
        try:
            decoded = Image.open(io.BytesIO(base64.b64decode(item["b64_json"], validate=True)))
            decoded.load()
        except (KeyError, binascii.Error, UnidentifiedImageError, OSError) as error:
            return f"no image: {type(error).__name__}"
        size = f"{decoded.width}x{decoded.height}"
        if body.get("size", "auto") not in ("auto", size):
            return f"an image of {size} instead of {body['size']}"
        if decoded.convert("RGB").getcolors(maxcolors=1) is not None:
            return "an image of one colour"
    seeds = answer["usage"]["safelight"]["seeds"]
    if "seed" in body and seeds != [body["seed"]] * num_images:
        return f"seeds {seeds} instead of {body['seed']}"
    return None
