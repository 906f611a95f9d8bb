"""The plain loop of `pipeline.diffusion.reference` over the unpacked tiny network: the engine's oracle."""

from collections.abc import Callable

import torch
from torch import Tensor

from safelight.pipeline.diffusion import noise
from safelight.pipeline.diffusion.reference import generate_one
from safelight.pipeline.params import GenerationParams
from tests.pipeline.parts import model, plain_network, states


def network(prompt: str) -> Callable[[Tensor, float], Tensor]:
    """The unpacked network under a prompt, as a function of (x, timestep)."""
    dit = plain_network()
    text = states(prompt)

    def evaluate(x: Tensor, timestep: float) -> Tensor:
        with torch.inference_mode():
            t = torch.tensor([timestep], dtype=torch.float32)
            kv = dit.text_key_values(text.states[None], text.mask[None])
            prediction: Tensor = dit(x[None].float(), dit.modulations(t), kv)[0]
            return prediction

    return evaluate


def reference(p: GenerationParams, estimates: list[Tensor] | None = None) -> Tensor:
    """The latents (C, H, W) of an image, float64; `estimates` gets the data that each evaluation predicts."""
    schedule, prediction = model().schedule, model().prediction
    shape = (4, p.height // 8, p.width // 8)
    return generate_one(
        network(p.prompt), network(p.negative_prompt), p.guidance_scale, prediction, schedule, p.solver,
        p.num_steps, noise.draw(p.seed, p.image_index, noise.START, shape),
        lambda k: noise.draw(p.seed, p.image_index, k + 1, shape),
        spacing=p.timestep_spacing, eta=p.eta, guidance_interval=p.guidance_interval,
        guidance_stride=p.guidance_stride, guidance_rescale=p.guidance_rescale, estimates=estimates,
    )  # fmt: skip
