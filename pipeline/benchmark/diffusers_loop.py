"""The same weights in diffusers, denoised as its pipelines do. The engine is compared with this.

diffusers is imported only when a loop is loaded: a benchmark of the engine alone does not need it.

Shapes: S images of a batch, L text tokens, C channels, H x W latent pixels.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safelight.models.checkpoints.plain_copy import write_plain_copy
from safelight.models.cuda_runtime import preload_cuda_runtime
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.diffusion import noise
from safelight.pipeline.diffusion.guidance import needs_uncond
from safelight.pipeline.engine.runner import padded_length
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.params import GenerationParams


@dataclass(frozen=True, slots=True)
class DiffusersLoop:
    """A transformer of the PixArt family in diffusers, and schedulers that match our solvers."""

    transformer: Any
    schedulers: dict[str, Callable[[], Any]]
    dtype: torch.dtype
    device: torch.device
    latent_scale: int

    @torch.inference_mode()
    def generate(self, batch: Sequence[GenerationParams], texts: Mapping[str, TextStates]) -> Tensor:
        """Latents (S, C, H, W) of images that are equal in solver, steps, guidance and size.

        `texts` holds the text states by prompt.
        """
        first = batch[0]
        scheduler = self.schedulers[first.solver]()
        scheduler.set_timesteps(first.num_steps, device=self.device)
        is_guided = needs_uncond(first.guidance_scale)
        states, mask = self._texts(batch, texts, is_guided)
        x = self._noise(batch)
        for t in scheduler.timesteps:
            rows = torch.cat([x, x]) if is_guided else x
            out = self.transformer(
                rows.to(self.dtype),
                encoder_hidden_states=states,
                encoder_attention_mask=mask,
                timestep=t.expand(len(rows)),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                return_dict=False,
            )[0][:, : x.shape[1]].float()
            if is_guided:
                uncond, cond = out.chunk(2)
                out = uncond + first.guidance_scale * (cond - uncond)
            x = scheduler.step(out, t, x, return_dict=False)[0]
        return x

    def _texts(
        self, batch: Sequence[GenerationParams], texts: Mapping[str, TextStates], is_guided: bool
    ) -> tuple[Tensor, Tensor]:
        """Text states and masks, (rows, L, width) and (rows, L), negative prompts first."""
        negatives = [params.negative_prompt for params in batch] if is_guided else []
        rows = [texts[prompt] for prompt in (*negatives, *(params.prompt for params in batch))]
        length = max(padded_length(row.mask) for row in rows)  # cut as the engine cuts them
        states = torch.stack([row.states[:length] for row in rows])
        mask = torch.stack([row.mask[:length] for row in rows])
        return states.to(self.device, self.dtype), mask.to(self.device, self.dtype)

    def _noise(self, batch: Sequence[GenerationParams]) -> Tensor:
        channels = self.transformer.config.in_channels
        shape = (channels, batch[0].height // self.latent_scale, batch[0].width // self.latent_scale)
        start = [noise.draw(params.seed, params.image_index, noise.START, shape) for params in batch]
        return torch.stack(start).to(self.device)


def load_loop(
    model: ModelInfo, dtype: torch.dtype, device: torch.device, latent_scale: int, is_compiled: bool
) -> DiffusersLoop:
    """Load the transformer of `model`, which must be of the PixArt family without size conditioning.

    Args:
        model: the model to load.
        dtype: of weights and activations.
        device: where to load it.
        latent_scale: pixels along one side of a latent pixel.
        is_compiled: whether to compile it with torch.compile.
    """
    preload_cuda_runtime()  # must run first: diffusers imports xformers when it is imported
    from diffusers import PixArtTransformer2DModel

    load: Any = PixArtTransformer2DModel.from_pretrained
    with tempfile.TemporaryDirectory() as plain:
        write_plain_copy(model.path / "transformer", Path(plain))
        transformer: Any = load(plain, torch_dtype=dtype, low_cpu_mem_usage=False)
    transformer = transformer.to(device).eval()
    if is_compiled:
        transformer = torch.compile(transformer, dynamic=True)
    return DiffusersLoop(
        transformer, _schedulers(model.path, model.schedule.family), dtype, device, latent_scale
    )


def _schedulers(folder: Path, family: str) -> dict[str, Callable[[], Any]]:
    """Makers of schedulers by our solvers' names."""
    import diffusers

    def from_folder(scheduler: Any) -> Callable[[], Any]:
        return lambda: scheduler.from_pretrained(folder / "scheduler")

    if family == "flow":
        return {
            "dpmpp_2m": from_folder(diffusers.DPMSolverMultistepScheduler),
            "euler": diffusers.FlowMatchEulerDiscreteScheduler,
            "heun": diffusers.FlowMatchHeunDiscreteScheduler,
        }
    schedulers = {
        "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
        "euler": diffusers.EulerDiscreteScheduler,
        "heun": diffusers.HeunDiscreteScheduler,
    }
    return {name: from_folder(scheduler) for name, scheduler in schedulers.items()}
