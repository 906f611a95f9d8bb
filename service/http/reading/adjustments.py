"""What was read in another way than it was written, for the answer."""

import json
import re
from collections.abc import Iterable

from safelight.service.http.schemas import Adjustment

HEADER = "x-safelight-adjusted"
MAX_SHOWN = 200  # characters of a value in the answer
MAX_NAME = 64
MAX_HEADER = 1000
_NOT_IN_HEADER = re.compile(r"[^A-Za-z0-9_.-]")


def adjustment(field: str, asked: object, used: object, note: str) -> Adjustment:
    """An `Adjustment` whose name and value are of bounded length."""
    return Adjustment(field=field[: 2 * MAX_NAME], asked=shortened(asked), used=used, note=note)


def shortened(value: object) -> object:
    """`value`, or the start of it as JSON if that is long."""
    text = value if isinstance(value, str) else json.dumps(value)
    return value if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def header_value(adjustments: Iterable[Adjustment]) -> str:
    """The names of the adjusted fields, each once."""
    names = dict.fromkeys(_NOT_IN_HEADER.sub("?", item.field[:MAX_NAME]) for item in adjustments)
    return ", ".join(names)[:MAX_HEADER]
