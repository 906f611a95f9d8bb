"""Whether an answer holds the pictures that were asked for."""

import base64
import binascii
import io
from typing import Any

from PIL import Image, UnidentifiedImageError

from loadtests.traces import Body


def fault_of(body: Body, answer: dict[str, Any]) -> str | None:
    """What is wrong with a 200 answer to `body`; None if nothing is. Every picture is decoded to its last pixel."""
    wanted = body.get("n", 1)
    pictures = answer.get("data", [])
    if len(pictures) != wanted:
        return f"{len(pictures)} pictures instead of {wanted}"
    for picture in pictures:
        try:
            image = Image.open(io.BytesIO(base64.b64decode(picture["b64_json"], validate=True)))
            image.load()
        except (KeyError, binascii.Error, UnidentifiedImageError, OSError) as error:
            return f"no picture: {type(error).__name__}"
        size = f"{image.width}x{image.height}"
        if body.get("size", "auto") not in ("auto", size):
            return f"a picture of {size} instead of {body['size']}"
        if all(low == high for low, high in image.convert("RGB").getextrema()):
            return "a picture of one colour"
    seeds = answer["usage"]["safelight"]["seeds"]
    if "seed" in body and seeds != [body["seed"]] * wanted:
        return f"seeds {seeds} instead of {body['seed']}"
    return None
