"""The tables of request fields in docs/api.md: names, what is allowed, and defaults are those of the code."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.params import GenerationParams
from safelight.service.errors import ServiceError
from safelight.service.http.reading.field_names import SIBLINGS
from safelight.service.http.reading.quality import STEPS, TIERS
from safelight.service.http.schemas import ImageRequest
from safelight.service.http.translation import make_output, make_params
from safelight.service.http.validation import parse_request
from safelight.service.messages import ImageFormat
from safelight.service.promises import GatewayPromises, Wish
from safelight.service.settings import Settings

PAGE = (Path(__file__).resolve().parents[1] / "docs/api.md").read_text(encoding="utf-8")
FIELDS_SECTION = PAGE.split("### Quality")[0]
SIBLINGS_SECTION = PAGE.split("## How requests are read")[1].split("## The response")[0]
ROWS = {
    name: (allowed, default)
    for name, allowed, default in re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \|$", FIELDS_SECTION, re.MULTILINE)
}
PROPERTIES: dict[str, dict[str, Any]] = ImageRequest.model_json_schema()["properties"]
MODEL = find_model("emoji-128")
# What a model's information calls a field whose default is "the model's".
MODEL_DEFAULTS = {
    "num_inference_steps": ("num_steps", MODEL.num_steps),
    "guidance_scale": ("guidance_scale", MODEL.guidance_scale),
    "solver": ("solver", MODEL.solver),
    "timestep_spacing": ("timestep_spacing", MODEL.timestep_spacing),
}


def allowed_by(schema: dict[str, Any]) -> str:
    """How the page begins to say what a field's schema allows."""
    rule = schema.get("anyOf", [schema])[0]
    if "enum" in rule or "const" in rule:
        values = rule.get("enum", [rule.get("const")])
        return ", ".join(f"`{value}`" if isinstance(value, str) else json.dumps(value) for value in values)
    if rule["type"] == "array":
        assert rule["minItems"] == rule["maxItems"] == 2
        return f"two times, {rule['items']['minimum']:g} (data) to {rule['items']['maximum']:g} (noise)"
    if "maxLength" in rule:
        start = f"{rule['minLength']} to" if "minLength" in rule else "up to"
        return f"{start} {rule['maxLength']:,} characters"
    if "maximum" in rule and rule["minimum"] == rule["maximum"]:
        return str(rule["minimum"])
    if "maximum" in rule:
        high = "2⁵³ − 1" if rule["maximum"] == 2**53 - 1 else f"{rule['maximum']:g}"
        return f"{rule['minimum']:g} to {high}"
    return {
        "model": "the id of a served model",
        "size": "one of the model's sizes as `WIDTHxHEIGHT`, or `auto`",
        "solver": "one of the model's `solvers` in `/v1/models`",
        "timestep_spacing": "one of the model's `timestep_spacings` in `/v1/models`",
        "stream": "`true`: the answer is a [stream of events](#streaming)",
        "user": "any text",
        "safety_identifier": "any text",
    }[schema["title"].lower().replace(" ", "_")]


def request(**fields: object) -> tuple[list[GenerationParams], ImageFormat]:
    """What is drawn, and the format of the files."""
    parsed = parse_request(json.dumps({"prompt": "a red apple", "seed": 1} | fields).encode())
    return make_params(parsed, MODEL), make_output(parsed)


def literal(cell: str) -> object:
    """A default as it is written in a cell: `png`, 1, `[0, 1]`, empty."""
    if cell == "empty":
        return ""
    text = cell.partition(":")[0].strip("`")
    try:
        return json.loads(text)
    except ValueError:
        return text


def test_every_field_of_a_request_is_documented() -> None:
    (ignored,) = re.findall(r"and ignored: (.*)\.$", FIELDS_SECTION, re.MULTILINE)
    names = set(re.findall(r"`(\w+)`", ignored))
    assert ROWS.keys() | names == ImageRequest.model_fields.keys()
    assert ROWS.keys().isdisjoint(names)
    assert all("ignored" in PROPERTIES[name]["description"] for name in names)


@pytest.mark.parametrize("name", ROWS)
def test_the_column_allowed_is_the_schemas(name: str) -> None:
    text = ROWS[name][0].replace("`false`", "false")
    expected = allowed_by(PROPERTIES[name])
    assert text.startswith(expected)
    assert not re.match(r"[,.]?\d", text.removeprefix(expected)), "the number goes on"


@pytest.mark.parametrize("name", [name for name, (_, default) in ROWS.items() if default == "the model's"])
def test_the_default_is_the_models(name: str) -> None:
    attribute, value = MODEL_DEFAULTS[name]
    (params,), _ = request()
    assert getattr(params, attribute) == value
    assert request(**{name: value}) == request()


def test_the_names_of_other_servers_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ((?:`\w+`(?:, )?)+).* \|$", SIBLINGS_SECTION, re.MULTILINE)
    assert {field: tuple(re.findall(r"`(\w+)`", names)) for field, names in rows} == SIBLINGS


def test_the_steps_of_each_quality_are_those_of_the_code() -> None:
    (table,) = re.findall(r"### Quality\n(.*?)\n## ", PAGE, re.DOTALL)
    factors = {"half, rounded up": 0.5, "the default": 1, "twice": 2, "three times": 3, "four times": 4}
    rows = re.findall(r"^\| (`.*`) \| (.*) \|$", table, re.MULTILINE)[1:]
    page = {name: factors[steps] for names, steps in rows for name in re.findall(r"`(\w+)`", names)}
    assert page == {name: STEPS[quality] for name, quality in TIERS.items()}


WORDS = (
    "required",
    "the model's",
    "the first model",
    "random, and reported",
    "the service's `promise_seconds`",
)


@pytest.mark.parametrize("name", [name for name, (_, default) in ROWS.items() if default not in WORDS])
def test_the_default_is_what_is_drawn_without_the_field(name: str) -> None:
    default = literal(ROWS[name][1])
    # A field may change nothing here because of another's default: eta needs ddim, quality a lossy format.
    others = {"eta": {"solver": "ddim"}, "output_compression": {"output_format": "jpeg"}}.get(name, {})
    assert request(**others, **{name: default}) == request(**others)
    if name in OTHER_VALUES:
        assert request(**others, **{name: OTHER_VALUES[name]}) != request(**others)


OTHER_VALUES: dict[str, object] = {  # so that a field that is not read at all would be noticed
    "n": 2,
    "output_format": "webp",
    "output_compression": 99,
    "negative_prompt": "green",
    "quality": "high",
    "eta": 0.5,
    "guidance_interval": [0.1, 1.0],
    "guidance_stride": 2,
    "guidance_rescale": 0.5,
}


def test_other_defaults() -> None:
    assert ROWS["prompt"][1] == "required"
    with pytest.raises(ServiceError, match="prompt is required"):
        parse_request(b"{}")
    assert ROWS["model"][1] == "the first model"
    assert ROWS["seed"][1] == "random, and reported"
    seeds = {
        params.seed
        for _ in range(3)
        for params in make_params(parse_request(b'{"prompt": "a red apple"}'), MODEL)
    }
    assert len(seeds) == 3
    assert GatewayPromises(Settings(promise_seconds=7.0)).wish(None, None) == Wish(7.0, is_default=True)
    assert ROWS["deadline_ms"][1] == "the service's `promise_seconds`"
