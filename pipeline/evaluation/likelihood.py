"""The parts of a checkpoint that say how well it explains an image: encoder and autoencoder once, the denoiser many times.

Shapes: C latent channels, h x w latent pixels, H x W pixels, D = C h w numbers, K probes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from safelight.models.denoisers import load_network
from safelight.models.networks.interface import Network, Times
from safelight.models.vae import encode_pixels, load_vae
from safelight.pipeline.assembly.device import fast_device
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import check_fit
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.diffusion.elbo import elbo, fixed_large
from safelight.pipeline.diffusion.likelihood import (
    Denoise,
    bits_per_dim,
    gaussian,
    log_likelihood,
    rademacher,
    standard_error,
)
from safelight.pipeline.diffusion.prediction import x0_coefficients
from safelight.pipeline.diffusion.schedules import Schedule
from safelight.pipeline.diffusion.spacing import FIRST_TRAINED, make_grid
from safelight.pipeline.engine.text_encoder import TextEncoder, TextStates
from safelight.pipeline.params import TextReport

Method = Callable[[Denoise, Schedule, Tensor, int, int, int, Callable[[float], None]], Tensor]


@dataclass(frozen=True, slots=True)
class LikelihoodEstimate:
    """A number and its standard error, which is not a number if one probe, or one draw of noise, was used."""

    value: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """How probable the latent of an image is: `prompt` and `empty` in bits a dimension, `gain` in nats the prompt adds.

    It is the density of the latent of `num_dims` numbers, blurred by noise of standard deviation `blur`; not of pixels. By
    the method `elbo` the density is that of ancestral sampling in so many steps, the ODE's only where the network is exact, and
    each number a bound: no more bits than said, and the gain a difference of two bounds.
    """

    prompt: LikelihoodEstimate
    empty: LikelihoodEstimate
    gain: LikelihoodEstimate
    num_dims: int
    blur: float
    text: TextReport


@dataclass(frozen=True, slots=True)
class LatentLikelihood:
    """A checkpoint as a density of latents, float32, without guidance: guided predictions are those of no density."""

    network: Network
    vae: nn.Module
    encoder: TextEncoder
    schedule: Schedule
    prediction: str
    device: torch.device

    def explain(
        self,
        pixels: np.ndarray,
        prompt: str,
        *,
        method: str,
        num_steps: int,
        num_probes: int,
        seed: int,
        progress: Callable[[float], None],
    ) -> Explanation:
        """Pixels (H, W, 3) uint8 and a text, compared with the empty text under the same probes or noise.

        `method` is a key of `METHODS`; `progress` is told the share done, in 0..1. Raises `InvalidParams` as
        `log_likelihood`, `elbo` and `rademacher` do.
        """
        latent = self._latent(pixels)
        denoise, text = self._denoiser((pixels.shape[0], pixels.shape[1]), prompt, "")
        twice = latent.expand(2, -1, -1, -1)
        found = METHODS[method](denoise, self.schedule, twice, num_steps, num_probes, seed, progress).cpu()
        dims = latent.numel()
        prompt_bits, empty_bits = bits_per_dim(found, dims).unbind(1)
        alpha, sigma = self.schedule.alpha_sigma(FIRST_TRAINED)
        return Explanation(
            _measured(prompt_bits),
            _measured(empty_bits),
            _measured(found[:, 0] - found[:, 1]),
            dims,
            sigma / alpha,
            text,
        )

    def _latent(self, pixels: np.ndarray) -> Tensor:
        """The latent (C, h, w), float64, as the denoiser knows it."""
        scaled = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(self.device).float() / 127.5 - 1.0
        with torch.no_grad():
            return encode_pixels(self.vae, scaled)[0].double()

    def _denoiser(
        self, size: tuple[int, int], *prompts: str
    ) -> tuple[Callable[[Tensor, float], Tensor], TextReport]:
        """The posterior mean of data of `size` (height, width) in pixels, row k under `prompts`[k]; and what was read of the first."""
        texts = self.encoder.encode(prompts)

        def denoise(x: Tensor, t: float) -> Tensor:
            p, q = x0_coefficients(self.prediction, *self.schedule.alpha_sigma(t))
            with torch.no_grad():  # the gradient asked for is that of x
                times = self.network.prepare_times(
                    torch.tensor([self.schedule.timestep(t)], device=self.device), size
                )
                rows = self.network.collate([self._row(text, times) for text in texts])
            out = self.network.predict(x.float(), rows, [0] * len(x))[:, : x.shape[1]]
            return p * x + q * out.to(x.dtype)

        return denoise, texts[0].report

    def _row(self, text: TextStates, times: Times) -> Any:
        pooled = None if text.pooled is None else text.pooled.to(self.device)
        return self.network.prepare_row(text.states.to(self.device), text.mask.to(self.device), pooled, times)


def build_likelihood(model: ModelInfo) -> LatentLikelihood:
    """`model` in float32, whatever the device does fast: divergences are differences of nearly equal numbers.

    Raises `CheckpointError` (a `ValueError`) for a checkpoint that cannot be loaded.
    """
    check_fit(model.path)
    device = fast_device()
    encoder = build_text_encoder(model)
    network = load_network(model.path / "transformer", str(device), torch.float32)
    vae = load_vae(model.path / "vae", str(device), torch.float32)
    return LatentLikelihood(network, vae, encoder, model.schedule, model.prediction, device)


def _by_ode(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    num_steps: int,
    num_probes: int,
    seed: int,
    progress: Callable[[float], None],
) -> Tensor:
    """log p of x (N, C, h, w) as (K, N), an unbiased estimate a probe."""
    probes = rademacher(num_probes, x[0].shape, seed)
    return log_likelihood(
        denoise,
        schedule,
        x,
        num_steps=num_steps,
        probes=probes,
        progress=lambda step: progress(step / num_steps),
    ).samples


def _by_elbo(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    num_steps: int,
    num_probes: int,
    seed: int,
    progress: Callable[[float], None],
) -> Tensor:
    """A lower bound on log p of x (N, C, h, w) as (K, N), one for each draw of noise, which all rows share.

    Equal steps of lam down to the noise that `_by_ode` blurs by, so that the two speak of nearly the same density.
    """
    grid = make_grid(schedule, num_steps, "uniform_lam")
    noise = (z.expand_as(x) for z in gaussian(x[0].shape, seed))
    bounds = []
    for k in range(num_probes):
        done = partial(_share, progress, k * num_steps, num_probes * num_steps)
        bounds.append(elbo(denoise, schedule, x, grid, noise=noise, variance=fixed_large, progress=done).nats)
    return torch.stack(bounds)


METHODS: Mapping[str, Method] = {"ode": _by_ode, "elbo": _by_elbo}


def _share(progress: Callable[[float], None], before: int, total: int, step: int) -> None:
    progress((before + step) / total)


def _measured(samples: Tensor) -> LikelihoodEstimate:
    return LikelihoodEstimate(float(samples.mean()), float(standard_error(samples[:, None])))
