"""The schema of a request says what the service reads: both accept the same fields, whatever is drawn."""

from typing import Any

import pytest
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from safelight.pipeline.errors import InvalidParams
from safelight.service.errors import ModelNotFound, ServiceError
from safelight.service.http.reading.field_names import WRAPPERS
from safelight.service.http.reading.model_names import ModelNames
from safelight.service.http.reading.request import read_request
from safelight.service.http.reading.schema import strict_schema, tolerant_schema
from safelight.service.http.translation import make_params
from tests.fakes import MODEL

NAMES = ModelNames(MODEL, ("flux.1-*",))
SCHEMA = tolerant_schema(NAMES)
VALIDATOR = Draft202012Validator(SCHEMA)
FIELDS: dict[str, Any] = SCHEMA["properties"]

# Values that many fields have in common, and those near the edges of each.
NUMBERS = st.sampled_from(
    [-2, -1, 0, 1, 2, 4, 10, 11, 100, 101, 200, 201, 16384, 16385, 2**53, 2**64, 10**30]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    NUMBERS.map(float),
    NUMBERS.map(str),
    st.sampled_from([0.5, 1.5, 20.0, 20.5, -0.1]),
    st.sampled_from(
        ["", " ", "0.5", "1.", ".5", "20.0", "1e3", "+1", "007", "true", "FALSE", "x", "-1", "1 000"]
    ),
    st.sampled_from(
        ["auto", "AUTO", "8x8", "16*8", "0x8", "16384x16384", "8x", "16:9", "0:1", "9x16385", "12.5"]
    ),
    st.sampled_from(
        ["euler", "DDIM", "eulera", "karras", "Karras", "png", "JPG", "image/webp", "gif", "b64_json"]
    ),
    st.sampled_from(["low", "High", "ultra", "opaque", "transparent", "vivid", "noir", "url", "base64"]),
    st.sampled_from(
        ["[0, 1]", "0.2,0.8", "[0.2", "0.2, 2", "fake-8", "gpt-image-9", "dall-e-2", "flux.1-dev", "sdxl"]
    ),
    st.sampled_from([" openai/Dall-E-9 ", "openai/fake-8", "FAKE-8 ", "Flux.1-dev", "fluxx1-dev"]),
)
VALUES = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.sampled_from(["n", "a"]), SCALARS)
)
REQUESTS = st.dictionaries(st.sampled_from([*FIELDS, "colour"]), VALUES, max_size=4)


def is_read(fields: dict[str, Any]) -> bool:
    try:
        make_params(read_request(fields, NAMES, is_strict=False).request, MODEL)
    except ModelNotFound:
        reject()  # a name that is not served is no fault of the request's form
    except (ServiceError, InvalidParams):
        return False
    return True


@settings(max_examples=400, deadline=None)
@given(REQUESTS)
@example({"model": " "})
@example({"model": "FAKE-8 "})
@example({"model": " openai/Dall-E-9 "})
def test_the_service_reads_exactly_what_the_schema_allows(fields: dict[str, Any]) -> None:
    for wrapper in WRAPPERS:
        if isinstance(fields.get(wrapper), dict):
            fields.pop(wrapper)  # the schema says nothing about the fields inside
    fields = {"prompt": "p"} | fields
    assert is_read(fields) == VALIDATOR.is_valid(fields), next(VALIDATOR.iter_errors(fields), None)


@settings(max_examples=300, deadline=None)
@given(REQUESTS)
def test_what_is_not_adjusted_is_read_strictly_to_the_same(fields: dict[str, Any]) -> None:
    fields = {"prompt": "p", "seed": 0} | {name: value for name, value in fields.items() if value is not None}
    for wrapper in WRAPPERS:
        if isinstance(inner := fields.get(wrapper), dict) and all(v is None for v in inner.values()):
            fields.pop(wrapper)  # says nothing, so nothing is adjusted
    try:
        reading = read_request(fields, NAMES, is_strict=False)
    except ServiceError:
        return
    if not reading.adjustments:
        assert read_request(fields, NAMES, is_strict=True).request == reading.request


@pytest.mark.parametrize("name", ["seed", "n", "size", "quality", "guidance_scale"])
def test_the_first_form_of_a_field_is_the_strict_one(name: str) -> None:
    assert FIELDS[name]["anyOf"][0] == strict_schema(NAMES)["properties"][name]["anyOf"][0]


@pytest.mark.parametrize(
    ("fields", "is_allowed"),
    [
        ({"stream": True, "response_format": "url"}, False),
        ({"stream": "1", "response_format": " URL "}, False),
        ({"stream": False, "response_format": "url"}, True),
        ({"user": 2**70}, True),
        ({"user": -(10**300)}, True),
    ],
)
def test_values_that_are_rarely_drawn(fields: dict[str, Any], is_allowed: bool) -> None:
    fields = {"prompt": "p"} | fields
    assert is_read(fields) == VALIDATOR.is_valid(fields) == is_allowed


def test_a_prompt_is_required() -> None:
    assert not VALIDATOR.is_valid({}) and not VALIDATOR.is_valid({"prompt": None})
    assert VALIDATOR.is_valid({"prompt": "p", "colour": 1})


def test_names_of_the_operators_are_in_the_schema() -> None:
    assert VALIDATOR.is_valid({"prompt": "p", "model": "flux.1-schnell"})
    assert not VALIDATOR.is_valid({"prompt": "p", "model": "sdxl"})
