"""The OpenAPI schema of a request as it is read: every name and form of a value that is understood."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from safelight.service.http.reading.field_names import SIBLINGS, WRAPPERS
from safelight.service.http.reading.model_names import PATTERNS, PREFIX, ModelNames
from safelight.service.http.reading.numbers import decimals, integer_pattern, number_pattern
from safelight.service.http.reading.samplers import SOLVERS, SPACINGS
from safelight.service.http.reading.sizes import MAX_SIDE, SIZE_PATTERN, size_name
from safelight.service.http.reading.values import (
    FLAG,
    INTEGER,
    KINDS,
    NO_INTEGER,
    NO_OBJECT,
    NO_TEXT,
    NUMBER,
    OUTPUT_FORMATS,
    PAIR,
    RESPONSE_FORMATS,
    SEED,
    TEXT,
)
from safelight.service.http.schemas import ImageRequest

Schema = dict[str, Any]
BLANK = {"type": "string", "pattern": "^ *$"}
NULL = {"type": "null"}
# Links are not streamed.
STREAMED_LINKS = {
    "required": ["stream", "response_format"],
    "properties": {
        "stream": {
            "anyOf": [{"enum": [True, 1]}, {"type": "string", "pattern": "^ *(?:[tT][rR][uU][eE]|1) *$"}]
        },
        "response_format": {"type": "string", "pattern": "^ *[uU][rR][lL] *$"},
    },
}
SYNONYMS = {"output_format": OUTPUT_FORMATS, "response_format": RESPONSE_FORMATS}


def strict_schema(names: ModelNames) -> Schema:
    """The schema of `ImageRequest`, whose enumerations are what any of the models serves."""
    schema = ImageRequest.model_json_schema()
    models = names.models
    for field, choices in {
        "model": names.listed,
        "size": ("auto", *(size_name(size) for model in models for size in model.sizes)),
        "solver": _solvers(names),
        "timestep_spacing": _spacings(names),
    }.items():
        schema["properties"][field]["anyOf"][0] = {"type": "string", "enum": list(dict.fromkeys(choices))}
    return schema | {"not": STREAMED_LINKS}


def tolerant_schema(names: ModelNames) -> Schema:
    """The schema of what `read_fields` understands."""
    schema = strict_schema(names)
    properties = {field: _tolerant(field, rule, names) for field, rule in schema["properties"].items()}
    for field, siblings in SIBLINGS.items():
        for sibling in siblings:
            properties[sibling] = _sibling(field, properties[field])
    properties |= _special()
    for wrapper in WRAPPERS:
        properties[wrapper] = {"description": "The fields of an object are read as fields of the request."}
    return schema | {
        "properties": properties,
        "additionalProperties": True,
        "description": "What to draw. A field that is not listed here is ignored, and the answer names it; "
        "null means the default. Values are best written as the first form of each field says.",
    }


def _tolerant(field: str, rule: Schema, names: ModelNames) -> Schema:
    """The schema of one field, with every form in which it is understood."""
    if field == "prompt":
        return rule
    exact = rule["anyOf"][0]
    return rule | {"anyOf": [exact, *_other_forms(field, exact, names), NULL]}


def _other_forms(field: str, exact: Mapping[str, Any], names: ModelNames) -> list[Schema]:
    """Schemas of the forms that are read as a value of the schema `exact`."""
    if field == "size":
        return [
            {"type": "string", "pattern": SIZE_PATTERN},
            {"type": "integer", "minimum": 1, "maximum": MAX_SIDE},
        ]
    if field == "model":
        return [text_schema(_model_pattern(names)), BLANK]
    if field in ("solver", "timestep_spacing"):
        return [BLANK, _sampler_names(field, names)]
    kind = KINDS.get(field)
    if kind is INTEGER:
        return [text_schema(integer_pattern(exact["minimum"], exact["maximum"])), BLANK]
    if kind is NUMBER:
        return [text_schema(number_pattern(int(exact["maximum"]))), BLANK]
    if kind is SEED:
        return [{"type": "integer"}, text_schema(r"^ *-?[0-9]{1,400}(?:\.0*)? *$"), BLANK]
    if kind is FLAG:
        return _flags(exact)
    if kind is PAIR:
        return _pairs()
    if kind is TEXT:
        return [{"type": "integer"}]  # of at most 400 digits
    if kind in (NO_TEXT, NO_INTEGER, NO_OBJECT):
        return [{}]
    if "const" in exact or "enum" in exact:
        words = (*exact.get("enum", [exact.get("const")]), *SYNONYMS.get(field, {}))
        return [text_schema(f"^ *(?:{'|'.join(map(_caseless, words))})? *$")]
    return []


def text_schema(pattern: str) -> Schema:
    """The schema of texts that match `pattern`."""
    return {"type": "string", "pattern": pattern}


def _model_pattern(names: ModelNames) -> str:
    """A regular expression for the names that `ModelNames.find` understands."""
    return f"^ *(?:{_any_of(names.listed)}|(?:{_caseless(PREFIX)})?{_any_of(PATTERNS)}) *$"


def _any_of(patterns: Sequence[str]) -> str:
    """A regular expression for any of `patterns`, in which `*` stands for anything."""
    return f"(?:{'|'.join('.*'.join(map(_caseless, pattern.split('*'))) for pattern in patterns)})"


def _caseless(word: str) -> str:
    """A regular expression for `word` in small or capital letters."""
    return "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else _literal(c) for c in word)


def _literal(word: str) -> str:
    """A regular expression for `word`. `re.escape` also escapes hyphens, which JavaScript's do not allow."""
    return re.sub(r"[\^$.|?*+()[\]{}/\\]", r"\\\g<0>", word)


def _flags(exact: Mapping[str, Any]) -> list[Schema]:
    values = [exact["const"]] if "const" in exact else [False, True]
    words = [word for value in values for word in (str(value), str(int(value)))]
    return [
        {"type": "integer", "enum": [int(value) for value in values]},
        text_schema(f"^ *(?:{'|'.join(map(_caseless, words))})? *$"),
    ]


def _pairs() -> list[Schema]:
    share = decimals(1)
    item = {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, text_schema(f"^ *{share} *$")]}
    return [
        {"type": "array", "items": item, "minItems": 2, "maxItems": 2},
        text_schema(rf"^ *(?:\[? *{share} *, *{share} *\]? *)?$"),
    ]


def _sampler_names(field: str, names: ModelNames) -> Schema:
    """Other servers' names, of which spellings with other capitals and punctuation are read as well."""
    if field == "solver":
        solvers = _solvers(names)
        return {"type": "string", "enum": [name for name, to in SOLVERS.items() if to in solvers]}
    allowed = (*_spacings(names), "")
    return {"type": "string", "enum": [name for name, spacing in SPACINGS.items() if spacing in allowed]}


def _solvers(names: ModelNames) -> list[str]:
    return [solver for model in names.models for solver in model.solvers]


def _spacings(names: ModelNames) -> list[str]:
    return [spacing for model in names.models for spacing in model.spacings]


def _sibling(field: str, rule: Schema) -> Schema:
    """The schema of another server's name of `field`, whose samplers and schedules may be unknown here."""
    forms = [{"type": "string"}, NULL] if field in ("solver", "timestep_spacing") else rule["anyOf"]
    return {"anyOf": forms, "default": None, "description": f"Another server's name: read as {field}."}


def _special() -> Schema:
    """Fields that are read into a size or a solver; a value without a meaning for them is ignored."""
    side = {
        "anyOf": [
            {"type": "number", "minimum": 1, "maximum": MAX_SIDE},
            text_schema(integer_pattern(1, MAX_SIDE)),
            {"type": "string", "not": {"pattern": r"^ *-?[0-9]{1,400}(?:\.0*)? *$"}},
            {"type": ["boolean", "array", "object", "null"]},
        ],
        "description": "Pixels: read with the other side as a size.",
    }
    return {
        "width": side,
        "height": side,
        "aspect_ratio": {"description": "Such as 16:9: read as the size with the nearest aspect ratio."},
        "scheduler": {"description": "Another server's name: read as timestep_spacing or solver."},
    }
