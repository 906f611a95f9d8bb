"""Reads `width`, `height` and `aspect_ratio`, which other servers have in place of a size."""

from collections.abc import Mapping

from safelight.service.http.reading.draft import Draft
from safelight.service.http.reading.numbers import read_integer
from safelight.service.http.reading.sizes import AUTO, MAX_SIDE, nearest_size, read_ratio, size_name

SIDES = ("width", "height")
Sent = Mapping[str, tuple[str, object]]  # by field: the client's name of it, and the value


def read_size_fields(draft: Draft, sent: Sent) -> None:
    """Make a size of the fields in `sent`, unless there is one: the sides count before the ratio."""
    sides = {field: sent[field] for field in SIDES if field in sent}
    size = _size_of_sides(draft, sides)
    if draft.has("size") and draft.values["size"] != AUTO:
        return _drop_all(draft, sent, f"{draft.sent_names['size']} is given as well")
    if size is None:
        _drop_all(draft, sides, "not a number of pixels")
        return _read_ratio(draft, sent)
    for field, (name, value) in sides.items():
        draft.put("size", size_name(size), name)
        draft.adjust(name, value, size[SIDES.index(field)], f"read as the size {size_name(size)}")
    _drop_all(draft, {field: sent[field] for field in sent if field not in sides}, "width or height is given")


def _read_ratio(draft: Draft, sent: Sent) -> None:
    if "aspect_ratio" not in sent:
        return
    name, value = sent["aspect_ratio"]
    size = read_ratio(value, draft.model)
    if size is None:
        return draft.drop(name, value, "not an aspect ratio such as 16:9")
    draft.put("size", size_name(size), name)
    draft.adjust(name, value, size_name(size), "the size with the nearest aspect ratio")


def _size_of_sides(draft: Draft, sides: Sent) -> tuple[int, int] | None:
    """The served size nearest to the sides that are given; a missing one is as in the default size."""
    numbers = {field: read_integer(value) for field, (_, value) in sides.items()}
    pixels = {field: side for field, side in numbers.items() if type(side) is int or type(side) is float}
    if not pixels:
        return None
    aspect = draft.model.default_size[0] / draft.model.default_size[1]
    width = pixels.get("width", _within_limits(pixels.get("height", 0.0) * aspect))
    height = pixels.get("height", _within_limits(width / aspect))
    return nearest_size(width, height, draft.model, sides[next(iter(pixels))][0])


def _within_limits(side: float) -> float:
    return min(max(side, 1.0), MAX_SIDE)


def _drop_all(draft: Draft, sent: Sent, note: str) -> None:
    for name, value in sent.values():
        draft.drop(name, value, note)
