"""Likelihood of an image's latent under a checkpoint, with and without its prompt.

Shapes: N rows, C latent channels, h x w latent pixels, H x W pixels, D = C h w dimensions, K probes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from safelight.models.autoencoders.interface import Autoencoder, encode_pixels
from safelight.models.autoencoders.loading import load_vae
from safelight.models.denoisers import load_network
from safelight.models.networks.interface import Network, Times
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

# denoise, schedule, x (N, C, h, w), num_steps, num_probes, seed, progress; returns log p as (K, N)
Method = Callable[[Denoise, Schedule, Tensor, int, int, int, Callable[[float], None]], Tensor]


@dataclass(frozen=True, slots=True)
class LikelihoodEstimate:
    """An estimate and its standard error, which is NaN for a single probe or draw of noise."""

    value: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class LikelihoodReport:
    """How probable the latent of an image is, with its prompt and with the empty prompt.

    The density is that of the latent, not of pixels, blurred by noise of standard deviation `blur`. With the
    method `elbo` it is the density of ancestral sampling in the given number of steps, which equals the ODE's
    only for an exact network. Each value is then a bound: the true number of bits is not larger, and `gain`
    is the difference of two bounds.
    """

    prompt: LikelihoodEstimate  # bits per dimension
    empty: LikelihoodEstimate  # bits per dimension
    gain: LikelihoodEstimate  # nats that the prompt adds
    num_dims: int
    blur: float
    text: TextReport


@dataclass(frozen=True, slots=True)
class LatentLikelihood:
    """A checkpoint as a density of latents, in float32 and without guidance, which has no density."""

    network: Network
    vae: Autoencoder
    encoder: TextEncoder
    schedule: Schedule
    prediction: str
    device: torch.device

    def estimate(
        self,
        pixels: np.ndarray,
        prompt: str,
        *,
        method: str,
        num_steps: int,
        num_probes: int,
        seed: int,
        progress: Callable[[float], None],
    ) -> LikelihoodReport:
        """Estimate the likelihood with a prompt and with the empty prompt, under the same probes or noise.

        Args:
            pixels: the image (H, W, 3) uint8.
            prompt: its text.
            method: a key of `METHODS`.
            num_steps: steps of the integral or the bound.
            num_probes: probes of the divergence, or draws of noise.
            seed: of the probes or the noise.
            progress: called with the finished share, from 0 to 1.

        Raises:
            InvalidParams: as `log_likelihood`, `elbo` and `rademacher` do.
        """
        latent = self._latent(pixels)
        denoise, text = self._denoiser((pixels.shape[0], pixels.shape[1]), prompt, "")
        rows = latent.expand(2, -1, -1, -1)
        nats = METHODS[method](denoise, self.schedule, rows, num_steps, num_probes, seed, progress).cpu()
        num_dims = latent.numel()
        prompt_bits, empty_bits = bits_per_dim(nats, num_dims).unbind(1)
        alpha, sigma = self.schedule.alpha_sigma(FIRST_TRAINED)
        return LikelihoodReport(
            prompt=_estimate(prompt_bits),
            empty=_estimate(empty_bits),
            gain=_estimate(nats[:, 0] - nats[:, 1]),
            num_dims=num_dims,
            blur=sigma / alpha,
            text=text,
        )

    def _latent(self, pixels: np.ndarray) -> Tensor:
        """Encode pixels (H, W, 3) to the scaled latent (C, h, w), float64."""
        scaled = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(self.device).float() / 127.5 - 1.0
        with torch.no_grad():
            return encode_pixels(self.vae, scaled)[0].double()

    def _denoiser(
        self, size: tuple[int, int], *prompts: str
    ) -> tuple[Callable[[Tensor, float], Tensor], TextReport]:
        """Return the posterior mean of data as a function of (x, t), with row k under `prompts[k]`.

        `size` is the image's (height, width). The second result reports how the first prompt was read.
        """
        texts = self.encoder.encode(prompts)

        def denoise(x: Tensor, t: float) -> Tensor:
            p, q = x0_coefficients(self.prediction, *self.schedule.alpha_sigma(t))
            with torch.no_grad():  # only the gradient of x is needed
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
    """Load `model` in float32 on every device: divergences are differences of nearly equal numbers.

    Raises:
        CheckpointError: a `ValueError`; the checkpoint cannot be loaded.
    """
    check_fit(model.path, model.read_options)
    device = fast_device()
    encoder = build_text_encoder(model)
    network = load_network(model.path / "transformer", str(device), torch.float32, model.read_options)
    vae = load_vae(model.path / "vae", str(device), torch.float32, model.read_options)
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
    """log p of x (N, C, h, w) by the probability-flow ODE, one unbiased estimate for each probe: (K, N)."""
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
    """A lower bound on log p of x (N, C, h, w) for each draw of noise, which all rows share: (K, N).

    Equal steps of lam down to the noise by which `_by_ode` blurs, so that both estimate nearly the same
    density.
    """
    grid = make_grid(schedule, num_steps, "uniform_lam")
    noise = (z.expand_as(x) for z in gaussian(x[0].shape, seed))
    bounds = []
    for k in range(num_probes):
        report = partial(_report_share, progress, k * num_steps, num_probes * num_steps)
        bound = elbo(denoise, schedule, x, grid, noise=noise, variance=fixed_large, progress=report)
        bounds.append(bound.nats)
    return torch.stack(bounds)


METHODS: Mapping[str, Method] = {"ode": _by_ode, "elbo": _by_elbo}


def _report_share(progress: Callable[[float], None], previous: int, total: int, step: int) -> None:
    progress((previous + step) / total)


def _estimate(samples: Tensor) -> LikelihoodEstimate:
    return LikelihoodEstimate(float(samples.mean()), float(standard_error(samples[:, None])))
