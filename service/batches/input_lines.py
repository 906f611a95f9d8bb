"""Reads the input file of a batch: one request a line, each with the client's name of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pydantic_core

from safelight.service.batches.batch import InputFault

MAX_FAULTS = 100  # that are listed
MAX_ID = 512  # characters of a custom_id
MAX_SHOWN = 100  # characters of a value in a sentence


@dataclass(frozen=True, slots=True)
class InputLine:
    """A request in the input file; `number` is that of its line, from 1."""

    number: int
    custom_id: str
    body: dict[str, Any]


class BadInput(Exception):
    """An input file that is not drawn; no line of it is."""

    def __init__(self, faults: tuple[InputFault, ...]):
        super().__init__(faults[0].message)
        self.faults = faults


def parse_input(content: bytes, endpoint: str, max_lines: int) -> list[InputLine]:
    """The requests in an input file. Raises `BadInput`; a fault in a request's own body is none of the file.

    Args:
        content: Lines of JSON. Blank lines are passed over, and counted.
        endpoint: The url of every line.
        max_lines: The most requests.
    """
    if content.count(b"\n") > 2 * max_lines + 2 or sum(1 for _ in _texts(content)) > max_lines:
        message = f"The file has more than {max_lines:,} requests, the most of one batch (max_batch_lines)."
        raise BadInput((InputFault("too_many_requests", message),))
    lines: list[InputLine] = []
    faults: list[InputFault] = []
    numbers: dict[str, int] = {}  # of lines, by custom_id
    for number, text in _texts(content):
        line = _parse_line(number, text, endpoint)
        if isinstance(line, InputLine) and line.custom_id in numbers:
            message = f"custom_id is the same as that of line {numbers[line.custom_id]}."
            line = InputFault("duplicate_custom_id", message, number, "custom_id")
        if isinstance(line, InputFault):
            faults.append(line)
        else:
            numbers[line.custom_id] = number
            lines.append(line)
        if len(faults) == MAX_FAULTS:
            break
    if not lines and not faults:
        faults.append(InputFault("empty_file", "The file has no requests."))
    if faults:
        raise BadInput(tuple(faults))
    return lines


def _texts(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers."""
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if text := line.strip():
            yield number, text


def _parse_line(number: int, text: bytes, endpoint: str) -> InputLine | InputFault:
    """The request in a line, or the first fault of what is around it."""
    try:
        entry = pydantic_core.from_json(text)
    except ValueError:
        return InputFault("invalid_json_line", "This line is not parseable as valid JSON.", number)
    if not isinstance(entry, dict):
        return InputFault("invalid_json_line", "This line must be a JSON object.", number)
    for name in ("custom_id", "method", "url", "body"):
        if entry.get(name) is None:
            return InputFault("missing_required_parameter", f"{name} is required.", number, name)
    custom_id, body = entry["custom_id"], entry["body"]
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_ID or "\0" in custom_id:
        message = f"custom_id must be a string of 1 to {MAX_ID} characters, without NUL."
        return InputFault("invalid_custom_id", message, number, "custom_id")
    if entry["method"] != "POST":
        return InputFault("invalid_method", "method must be POST.", number, "method")
    if entry["url"] != endpoint:
        message = f"url must be {endpoint}, the endpoint of the batch; got {str(entry['url'])[:MAX_SHOWN]}."
        return InputFault("invalid_url", message, number, "url")
    if not isinstance(body, dict):
        return InputFault(
            "invalid_body", "body must be an object: the fields of the request.", number, "body"
        )
    return InputLine(number, custom_id, body)
