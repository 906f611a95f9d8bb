"""A request against the limits of a model, field by field: the last value allowed, and the first refused.

The limits are written out, because they are promised in the documentation.
"""

import math
from dataclasses import replace

import pytest

from safelight.pipeline.catalog.model_info import check_params
from safelight.pipeline.errors import InvalidParams
from tests.fakes import MODEL, make_params

ALLOWED: list[dict[str, object]] = [
    {"prompt": "x" * 32_000},
    {"negative_prompt": "x" * 32_000},
    {"width": 16, "height": 8},
    {"num_steps": 1},
    {"num_steps": 200},
    {"guidance_scale": 0.0},
    {"guidance_scale": 20.0},
    {"solver": "ddim", "eta": 1.0},
    {"timestep_spacing": "karras"},
    {"guidance_interval": (0.5, 0.5)},
    {"guidance_stride": 10},
    {"guidance_rescale": 1.0},
    {"seed": 0},
    {"seed": 2**53 - 1},
]
REFUSED: list[tuple[dict[str, object], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": " \n"}, "prompt"),
    ({"prompt": "x" * 32_001}, "prompt"),
    ({"negative_prompt": "x" * 32_001}, "negative_prompt"),
    ({"width": 8, "height": 16}, "size"),
    ({"num_steps": 0}, "num_steps"),
    ({"num_steps": 201}, "num_steps"),
    ({"guidance_scale": -0.1}, "guidance_scale"),
    ({"guidance_scale": 20.1}, "guidance_scale"),
    ({"guidance_scale": math.nan}, "guidance_scale"),
    ({"solver": "heun"}, "solver"),
    ({"timestep_spacing": "leading"}, "timestep_spacing"),
    ({"eta": 0.5}, "eta"),
    ({"solver": "ddim", "eta": 1.1}, "eta"),
    ({"solver": "ddim", "eta": -0.1}, "eta"),
    ({"guidance_interval": (0.6, 0.5)}, "guidance_interval"),
    ({"guidance_interval": (-0.1, 0.5)}, "guidance_interval"),
    ({"guidance_interval": (0.5, 1.1)}, "guidance_interval"),
    ({"guidance_stride": 0}, "guidance_stride"),
    ({"guidance_stride": 11}, "guidance_stride"),
    ({"guidance_rescale": -0.1}, "guidance_rescale"),
    ({"guidance_rescale": 1.1}, "guidance_rescale"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**53}, "seed"),
]


@pytest.mark.parametrize("changes", ALLOWED, ids=lambda changes: " ".join(changes))
def test_the_last_value_is_allowed(changes: dict[str, object]) -> None:
    check_params(make_params(**changes), MODEL)


@pytest.mark.parametrize(
    ("changes", "param"), REFUSED, ids=lambda value: value if isinstance(value, str) else None
)
def test_the_first_value_beyond_is_refused_by_name(changes: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidParams, match=rf"^{param}") as refusal:
        check_params(make_params(**changes), MODEL)
    assert refusal.value.param == param


def test_a_refusal_names_what_is_allowed() -> None:
    for changes, allowed in (
        ({"width": 9}, "allowed: 8x8, 16x8, or auto"),
        ({"solver": "heun"}, "allowed: euler, ddim, plms"),
        ({"timestep_spacing": "leading"}, "allowed: trailing, karras"),
        ({"num_steps": 201}, "between 1 and 200, got 201"),
        ({"guidance_scale": 20.5}, "between 0 and 20, got 20.5"),
    ):
        with pytest.raises(InvalidParams, match=allowed):
            check_params(replace(make_params(), **changes), MODEL)
