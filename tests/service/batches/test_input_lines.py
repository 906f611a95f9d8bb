"""The input file of a batch: what its lines must be, and what is said of a fault."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.service.batches.input_lines import MAX_FAULTS, BadInput, parse_input

ENDPOINT = "/v1/images/generations"
GOOD: dict[str, Any] = {"custom_id": "a", "method": "POST", "url": ENDPOINT, "body": {"prompt": "p"}}


def faults(content: bytes, max_lines: int = 1000) -> list[tuple[int | None, str, str | None]]:
    with pytest.raises(BadInput) as caught:
        parse_input(content, ENDPOINT, max_lines)
    return [(fault.line, fault.code, fault.param) for fault in caught.value.faults]


def test_blank_lines_are_passed_over_and_counted() -> None:
    second = GOOD | {"custom_id": "b"}
    content = b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\n  \n" + json.dumps(second).encode()
    lines = parse_input(content, ENDPOINT, 2)
    assert [(line.number, line.custom_id) for line in lines] == [(1, "a"), (4, "b")]
    assert lines[0].body == {"prompt": "p"}


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"custom_id": None}, "missing_required_parameter", "custom_id"),
        ({"body": None}, "missing_required_parameter", "body"),
        ({"custom_id": ""}, "invalid_custom_id", "custom_id"),
        ({"custom_id": 7}, "invalid_custom_id", "custom_id"),
        ({"custom_id": "x" * 513}, "invalid_custom_id", "custom_id"),
        ({"custom_id": "a\0"}, "invalid_custom_id", "custom_id"),
        ({"method": "GET"}, "invalid_method", "method"),
        ({"url": "/v1/images/edits"}, "invalid_url", "url"),
        ({"body": ["prompt"]}, "invalid_body", "body"),
    ],
    ids=str,
)
def test_a_fault_names_line_and_field(changes: dict[str, Any], code: str, param: str) -> None:
    good = json.dumps(GOOD | {"custom_id": "first"}).encode()
    assert faults(good + b"\n" + json.dumps(GOOD | changes).encode()) == [(2, code, param)]


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b"[" * 100_000, b"7"])
def test_a_line_that_is_no_object(text: bytes) -> None:
    assert faults(text) == [(1, "invalid_json_line", None)]


def test_a_file_without_requests() -> None:
    assert faults(b"\n\n") == [(None, "empty_file", None)]


def test_a_file_with_too_many_requests() -> None:
    lines = [json.dumps(GOOD | {"custom_id": str(n)}).encode() for n in range(4)]
    assert len(parse_input(b"\n".join(lines[:3]), ENDPOINT, 3)) == 3
    assert faults(b"\n".join(lines), 3) == [(None, "too_many_requests", None)]


def test_not_more_faults_than_anybody_reads() -> None:
    assert len(faults(b"x\n" * (MAX_FAULTS + 50))) == MAX_FAULTS


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        lines = parse_input(content, ENDPOINT, 10)
    except BadInput as error:
        assert error.faults
    else:
        assert lines
