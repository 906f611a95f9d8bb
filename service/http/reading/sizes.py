"""Sizes that clients ask for, and the served size that is nearest."""

import math
import re

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.service.errors import InvalidRequest
from safelight.service.http.reading.numbers import read_integer, whole_numbers

AUTO = "auto"  # the default size
MAX_SIDE = 16_384  # pixels; a size beyond is a mistake and has no nearest one
SIZE_TEXT = re.compile(r" *(-?[0-9]{1,20})(?: *[xX*×] *(-?[0-9]{1,20}))? *")
RATIO_TEXT = re.compile(r" *([0-9]{1,5}) *[:/] *([0-9]{1,5}) *")
_SIDE = whole_numbers(1, MAX_SIDE)
SIZE_PATTERN = rf"^ *(?:[aA][uU][tT][oO]|{_SIDE}(?:\.0*| *[xX*×] *{_SIDE})?)? *$"
RATIO_PATTERN = r"^ *0*[1-9][0-9]{0,3} *[:/] *0*[1-9][0-9]{0,3} *$"


def size_name(size: tuple[int, int]) -> str:
    """`WIDTHxHEIGHT`."""
    return f"{size[0]}x{size[1]}"


def read_size(value: object, model: ModelInfo, field: str) -> object:
    """The name of the served size that is nearest to `value`; a value that is no size as it is.

    A size is `WIDTHxHEIGHT`, also with `*`, capitals or spaces, or the side of a square. A blank text
    is `auto`. Raises `InvalidRequest`, naming `field`, for sides that are not 1 to
    `MAX_SIDE` pixels.
    """
    number = read_integer(value)
    if isinstance(value, bool) or not isinstance(number, (str, int)):
        return value
    text = str(number)
    if text.strip(" ").lower() in ("", AUTO):
        return AUTO
    match = SIZE_TEXT.fullmatch(text)
    if match is None:
        return value
    width = int(match[1])
    return size_name(nearest_size(width, int(match[2] or width), model, field))


def nearest_size(width: float, height: float, model: ModelInfo, field: str) -> tuple[int, int]:
    """The served size whose aspect ratio is nearest, and of those the one whose area is.

    Raises `InvalidRequest`, naming `field`, for sides that are not 1 to `MAX_SIDE` pixels.
    """
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise InvalidRequest(
            f"{field}: the sides of an image must be between 1 and {MAX_SIDE} pixels; "
            f"got {width:.20g}x{height:.20g}.",
            field,
        )
    return _nearest(width, height, model)


def read_ratio(value: object, model: ModelInfo) -> tuple[int, int] | None:
    """The served size nearest to an aspect ratio such as `16:9`; None if `value` is none."""
    match = RATIO_TEXT.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    width, height = int(match[1]), int(match[2])
    if not width or not height:
        return None
    scale = math.sqrt(math.prod(model.default_size) / (width * height))
    return _nearest(width * scale, height * scale, model)


def _nearest(width: float, height: float, model: ModelInfo) -> tuple[int, int]:
    def distance(size: tuple[int, int]) -> tuple[float, float]:
        aspect = abs(math.log(size[0] / size[1] * height / width))
        return round(aspect, 6), abs(math.log(math.prod(size) / (width * height)))

    return min(model.sizes, key=distance)
