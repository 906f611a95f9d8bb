"""Operations of an image: against torch's counter, and how they follow steps, solver and guidance."""

import math

import pytest

from safelight.pipeline.capacity.devices import ConstantRateDevice
from safelight.pipeline.capacity.image_cost import image_cost
from safelight.pipeline.capacity.model_profiles import list_published, model_profile, published_profile
from safelight.pipeline.capacity.predict import Targets, predict
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.errors import InvalidParams
from tests.pipeline.capacity.specs import default_spec

TFLOP_BY_STEPS = {  # one guided image of 1024x1024, texts and decoding included
    "pixart-alpha": {20: 273, 50: 664},
    "pixart-sigma": {10: 149, 20: 281, 28: 388},
    "sdxl": {20: 281, 50: 687},
    "sd3-medium": {20: 372, 28: 514, 50: 906},
    "sd3.5-medium": {20: 465, 28: 645},
    "sd3.5-large": {20: 1260, 28: 1758},
    "flux.1-dev": {20: 1503, 28: 2098, 50: 3735},
    "flux.1-schnell": {4: 291},
}


@pytest.mark.parametrize("name", TFLOP_BY_STEPS)
def test_cost_of_published_models(name: str) -> None:
    """Against torch's counter on diffusers' own networks, which process each text anew at every step."""
    profile = published_profile(name)
    for num_steps, tflop in TFLOP_BY_STEPS[name].items():
        cost = image_cost(profile, default_spec(profile, num_steps=num_steps))
        assert cost.total / 1e12 == pytest.approx(tflop, rel=0.01)
        assert cost.total == cost.encode + cost.denoise + cost.decode


def test_cost_follows_the_solver_and_guidance() -> None:
    profile = published_profile("sd3-medium")
    guided = image_cost(profile, default_spec(profile, num_steps=20))
    heun = image_cost(profile, default_spec(profile, num_steps=20, solver="heun"))
    unguided = image_cost(profile, default_spec(profile, num_steps=20, guidance_scale=1.0))
    assert (len(guided.ticks), len(heun.ticks), len(unguided.ticks)) == (20, 39, 20)
    assert (guided.rows, unguided.rows) == (2, 1)
    assert guided.ticks[0] == 2 * unguided.ticks[0]
    assert (guided.encode, guided.decode) == (2 * unguided.encode, unguided.decode)


def test_cost_of_a_folder_follows_its_configs() -> None:
    """The embedded model; tests/pipeline/flops/test_flops.py counts the same operations stage by stage."""
    model = find_model("emoji-128")
    profile = model_profile(model)
    cost = image_cost(profile, default_spec(profile))
    assert (profile.sizes, profile.scale) == (model.sizes, 8)
    assert cost.encode == 2 * 84_568_320
    assert cost.decode == 1_607_270_400
    assert cost.tokens == 64


@pytest.mark.parametrize("name", list_published())
def test_every_published_name_has_a_cost(name: str) -> None:
    profile = published_profile(name)
    assert image_cost(profile, default_spec(profile)).denoise > 1e13


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ({"size": (1000, 1024)}, "multiples of 16"),
        ({"size": (8192, 1024)}, "at most 4096"),
        ({"size": (0, 1024)}, "multiples of 16"),
        ({"num_steps": 0}, "between 1 and 200, got 0"),
        ({"guidance_scale": 21.0}, "between 0 and 20, got 21"),
        ({"guidance_scale": math.nan}, "between 0 and 20, got nan"),
        ({"solver": "magic"}, "'magic' is unknown"),
    ],
)
def test_an_impossible_image_is_refused(overrides: dict[str, object], complaint: str) -> None:
    profile = published_profile("pixart-sigma")
    with pytest.raises(InvalidParams, match=complaint):
        predict(profile, default_spec(profile, **overrides), ConstantRateDevice(1e14), Targets())


def test_what_is_computed_once_follows_times_and_texts() -> None:
    """By the network's own formulas: the table of times once, the projection for each text."""
    profile = published_profile("pixart-sigma")
    one, two, other_times = profile.once(20, 1), profile.once(20, 2), profile.once(40, 1)
    per_text = two - one
    assert per_text > 0 and profile.once(20, 3) == one + 2 * per_text
    assert other_times > one > per_text
