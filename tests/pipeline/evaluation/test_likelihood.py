"""Both likelihood methods, on data whose density is known exactly, and the latent of an image."""

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.diffusion.schedules import Flow, VariancePreserving
from safelight.pipeline.evaluation import likelihood
from safelight.pipeline.evaluation.likelihood import METHODS, LatentLikelihood, build_likelihood
from safelight.pipeline.params import TextReport
from tests.pipeline.oracle import EIGHT

POINTS = EIGHT.draw(16, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("schedule", [VariancePreserving(), Flow()], ids=str)
def test_the_bound_is_below_the_density_and_approaches_it(schedule: Flow | VariancePreserving) -> None:
    def nats(method: str, num_steps: int, num_probes: int) -> float:
        samples = METHODS[method](denoise, schedule, POINTS, num_steps, num_probes, 0, shares.append)
        assert samples.shape == (num_probes, len(POINTS))
        return float(samples.mean())

    def denoise(x: torch.Tensor, t: float) -> torch.Tensor:
        return EIGHT.x0(x, *schedule.alpha_sigma(t))

    shares: list[float] = []
    exact = float(EIGHT.log_density(POINTS).mean())
    assert nats("ode", 60, 40) == pytest.approx(exact, abs=0.1)  # the spread of 40 probes
    few, many = nats("elbo", 50, 60), nats("elbo", 400, 60)
    assert exact - 2.5 < few < many - 0.3
    assert exact - 0.5 < many < exact + 0.05
    assert [shares[0], shares[-1]] == [1 / 60, 1.0]
    assert all(0.0 < share <= 1.0 for share in shares)


def test_the_latent_of_an_image_is_that_of_diffusers() -> None:
    """From levels of 255 to the denoiser's scale, of an image that is no square."""
    model = find_model("emoji-128")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    vae = AutoencoderTiny.from_pretrained(model.path / "vae")
    with torch.inference_mode():
        encoded = vae.encode(VaeImageProcessor().preprocess(Image.fromarray(pixels))).latents[0]
    latent = build_likelihood(model)._latent(pixels)
    assert latent.dtype == torch.float64
    torch.testing.assert_close(latent.float(), encoded * vae.config.scaling_factor)


def test_a_report_compares_the_prompt_with_the_empty_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two probes, by which the prompt's latent has 10 and 14 nats, and that of the empty prompt 4 and 6."""
    monkeypatch.setattr(likelihood, "encode_pixels", lambda vae, pixels: torch.zeros(1, 4, 1, 2))
    nats = torch.tensor([[10.0, 4.0], [14.0, 6.0]])
    monkeypatch.setitem(likelihood.METHODS, "known", lambda *arguments: nats)
    readings = {"a cat": TextReport(2, False, ("blorp",)), "": TextReport(0, False, ())}
    encoder = SimpleNamespace(encode=lambda texts: [SimpleNamespace(report=readings[text]) for text in texts])
    unused: Any = None
    texts = cast(Any, encoder)
    density: Any = LatentLikelihood(unused, unused, texts, Flow(), "flow", torch.device("cpu"))
    report = density.estimate(
        np.zeros((8, 16, 3), np.uint8),
        "a cat",
        method="known",
        num_steps=1,
        num_probes=2,
        seed=0,
        progress=lambda share: None,
    )
    bit = 8 * math.log(2.0)
    assert (report.prompt.value, report.empty.value) == (pytest.approx(-12 / bit), pytest.approx(-5 / bit))
    assert (report.gain.value, report.gain.standard_error) == (7.0, pytest.approx(1.0))
    assert report.prompt.standard_error == pytest.approx(2.0 / bit)
    assert (report.num_dims, report.text) == (8, readings["a cat"])
    assert report.blur == pytest.approx(0.001 / 0.999)
