"""Edits: which ticks run, from which start, and what a mask keeps, against diffusers and a plain loop."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline, StableDiffusionImg2ImgPipeline
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img
from diffusers.pipelines.stable_diffusion_3 import pipeline_stable_diffusion_3_img2img
from PIL import Image
from torch import Tensor, nn

from safelight.models.autoencoders.options import TinyOptions
from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_runner
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.planning import plan_request
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.diffusion import noise
from safelight.pipeline.diffusion.schedules import Flow, Schedule, VarianceExploding, VariancePreserving
from safelight.pipeline.diffusion.solvers import Plan, make_plan
from safelight.pipeline.diffusion.spacing import make_grid
from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.engine.image_decoder import InvalidImage
from safelight.pipeline.engine.sample import start_state
from safelight.pipeline.engine.source_image import SourceImage
from safelight.pipeline.engine.source_latents import SourceLatents
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.params import EditParams, GenerationParams
from safelight.pipeline.scheduling.batcher import Limits
from tests.models.folders import SAMPLE_SIZE, write_pixart, write_sd3
from tests.pipeline import parts
from tests.pipeline.reference_loop import network

STEPS, SIDE = 10, 8 * SAMPLE_SIZE
SHAPE = (4, 8, 8)
SCHEDULES = (VariancePreserving("scaled_linear"), VarianceExploding(0.01, 20.0))


def edited(strength: float, is_inpainting: bool = False, **changes: Any) -> GenerationParams:
    return parts.params(edit=EditParams(strength, is_inpainting), **changes)


def source(with_mask: bool = False) -> SourceLatents:
    latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    redraw = torch.zeros(8, 8, dtype=torch.bool)
    redraw[2:6, 3:] = True
    return SourceLatents(latents, redraw if with_mask else None)


def run(engine: Engine, params: GenerationParams, start: SourceLatents | None) -> Tensor:
    engine.add("only", params, parts.states(params.prompt), parts.states(""), source=start)
    return parts.latents_of(parts.drain(engine)["only"])


@pytest.mark.parametrize(
    ("strength", "num_steps", "taken"),
    [(1.0, 6, 6), (0.5, 6, 3), (0.6, 10, 6), (0.58, 50, 29), (0.34, 6, 3), (0.01, 6, 1), (0.0, 6, 1)],
)
def test_strength_is_the_share_of_steps_that_are_taken(strength: float, num_steps: int, taken: int) -> None:
    """Rounded up: 0.58 of 50 is 28.999999999999996 in floats, and counts as 29."""
    params = edited(strength, num_steps=num_steps)
    whole = plan_request(parts.params(num_steps=num_steps), parts.model())
    plan = plan_request(params, parts.model())
    assert [tick.t for tick in plan.ticks] == [tick.t for tick in whole.ticks[-taken:]]
    assert plan.num_steps == taken == params.steps_taken


def test_a_multistep_solver_starts_without_history() -> None:
    plan = plan_request(edited(0.5, solver="dpmpp_2m"), parts.model())
    whole = plan_request(parts.params(solver="dpmpp_2m"), parts.model())
    assert whole.ticks[3].b[1] != 0.0
    assert plan.ticks[0].b[1] == 0.0 and plan.ticks[1].b[1] != 0.0


def test_too_few_steps_for_a_solver_name_the_strength() -> None:
    with pytest.raises(InvalidParams, match="strength leaves 1 of 6 steps, too few for plms") as error:
        plan_request(edited(0.1, solver="plms"), parts.model())
    assert error.value.param == "strength"


def test_full_strength_is_a_generation() -> None:
    assert torch.equal(run(parts.engine(), edited(1.0), source()), parts.alone(parts.params()))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_full_strength_is_a_generation_on_every_schedule(schedule: Schedule) -> None:
    """Also where alpha is not 0 at t = 1, as in the chains of DDPM."""
    model = replace(parts.model(), schedule=schedule, prediction="v_prediction")
    plan = plan_request(edited(1.0), model)
    start = source().noised(edited(1.0), torch.device("cpu"))
    states = [start_state(edited(1.0), plan, SHAPE, torch.device("cpu"), given) for given in (start, None)]
    assert torch.equal(*states)


@pytest.mark.parametrize(
    "schedule", [VariancePreserving("scaled_linear"), VarianceExploding(0.01, 20.0), Flow()]
)
def test_an_edit_starts_from_its_source_with_the_noise_of_its_time(schedule: Schedule) -> None:
    """alpha x0 + sigma z: on each kind of schedule with its own scales."""
    params, start = edited(0.5), source()
    plan = plan_request(params, replace(parts.model(), schedule=schedule, prediction="v_prediction"))
    alpha, sigma = schedule.alpha_sigma(plan.ticks[0].t)
    assert 0.0 < plan.ticks[0].t < 1.0
    state = start_state(params, plan, SHAPE, torch.device("cpu"), start.noised(params, torch.device("cpu")))
    z = noise.draw(params.seed, params.image_index, noise.START, SHAPE)
    torch.testing.assert_close(state[0], alpha * start.latents + sigma * z)
    assert not state[1:].any()


def test_every_image_of_a_request_has_its_own_noise() -> None:
    first, second = (edited(0.5, image_index=index) for index in range(2))
    assert not torch.equal(run(parts.engine(), first, source()), run(parts.engine(), second, source()))


def test_only_the_ticks_that_run_are_planned_and_charged() -> None:
    engine = parts.engine()
    engine.add("edit", edited(0.5), parts.states("a red apple"), parts.states(""), source=source())
    [queued] = engine._queue
    assert len(queued.workload.rows) == 3
    usage = parts.drain(engine)["edit"].usage
    assert (usage.ticks, usage.nfe, usage.rows) == (3, 3, 6)
    whole = parts.drain_one(parts.engine(), parts.params()).usage
    assert usage.cost.flops < 0.6 * whole.cost.flops


def test_edits_of_other_strengths_have_plans_of_their_own() -> None:
    """In one engine, where plans are cached by what they depend on."""
    engine = parts.engine()
    first, second = (run(engine, edited(strength), source()) for strength in (0.5, 0.7))
    assert torch.equal(second, run(parts.engine(), edited(0.7), source()))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("params", "start"),
    [
        (edited(0.5), None),
        (parts.params(), source()),
        (edited(0.5), SourceLatents(torch.zeros(4, 8, 7))),
    ],
    ids=["no source", "no edit", "another shape"],
)
def test_an_edit_needs_a_source_of_its_shape(params: GenerationParams, start: SourceLatents | None) -> None:
    with pytest.raises(ValueError, match="the source has latents of the shape"):
        run(parts.engine(), params, start)


@pytest.mark.parametrize("solver", parts.model().solvers)
def test_latents_outside_the_mask_are_the_source(solver: str) -> None:
    start = source(with_mask=True)
    assert start.redraw is not None
    result = run(parts.engine(), edited(0.8, True, solver=solver, num_steps=4), start)
    assert torch.equal(result[:, ~start.redraw], start.latents[:, ~start.redraw])
    assert float((result - start.latents)[:, start.redraw].abs().mean()) > 0.1


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting_equals_a_plain_loop(strength: float) -> None:
    """Euler's steps of a flow, written out: the source is put back, noised to the time, after every step."""
    params, start = edited(strength, True, solver="euler", timestep_spacing="karras"), source(with_mask=True)
    z = noise.draw(params.seed, params.image_index, noise.START, SHAPE)
    times = make_grid(parts.model().schedule, params.num_steps, "karras")[-params.steps_taken - 1 :]
    cond, uncond = network(params.prompt), network("")
    x = (1.0 - times[0]) * start.latents + times[0] * z
    for t, t_next in zip(times, times[1:], strict=False):
        timestep = parts.model().schedule.timestep(t)
        base = uncond(x, timestep)
        x = x + (t_next - t) * (base + params.guidance_scale * (cond(x, timestep) - base))
        assert start.redraw is not None
        x = torch.where(start.redraw, x, (1.0 - t_next) * start.latents + t_next * z)
    torch.testing.assert_close(run(parts.engine(), params, start), x, atol=2e-4, rtol=0)


def image() -> np.ndarray:
    """Pixels (H, W, 3) with edges and gradients."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    return np.stack([4 * rows % 256, 3 * columns % 256, 90 + 100 * (rows > columns)], -1).astype(np.uint8)


def as_source(pixels: np.ndarray, redraw: np.ndarray | None = None) -> SourceImage:
    height, width, _ = pixels.shape
    return SourceImage(pixels, redraw, (width, height), (0, 0, width, height))


def our_latents(model: ModelInfo, plan: Plan, params: GenerationParams) -> Tensor:
    """The latents of an edit of `image`, with the model's own encoders."""
    start, _ = build_decoder(model, dtype=torch.float32).encode(as_source(image()))
    cond, uncond = build_text_encoder(model, dtype=torch.float32).encode(
        [params.prompt, params.negative_prompt]
    )
    engine = Engine(build_runner(model, dtype=torch.float32), lambda _: plan, 8, Limits(2, 10**6))
    engine.add("only", params, cond, uncond, source=start)
    return parts.latents_of(parts.drain(engine)["only"])


def take_the_mode(module: Any, monkeypatch: pytest.MonkeyPatch, z: Tensor) -> None:
    """Let a pipeline of diffusers start from our noise, and from the posterior's mode."""
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: z[None])
    monkeypatch.setattr(module, "retrieve_latents", lambda encoded, **_: encoded.latent_dist.mode())


@pytest.mark.filterwarnings("ignore")  # diffusers' deprecation warnings
def test_a_flow_model_edits_as_diffusers_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = StableDiffusion3Img2ImgPipeline(**write_sd3(tmp_path).components)
    pipe.set_progress_bar_config(disable=True)
    model = find_model(str(tmp_path))
    params = GenerationParams(
        "a red apple", "blurry", SIDE, SIDE, STEPS, 4.0, model.solver, 1,
        timestep_spacing=model.timestep_spacing, edit=EditParams(0.6),
    )  # fmt: skip
    take_the_mode(pipeline_stable_diffusion_3_img2img, monkeypatch, noise.draw(1, 0, noise.START, (16, 8, 8)))
    theirs = pipe(
        prompt=params.prompt, negative_prompt=params.negative_prompt, image=Image.fromarray(image()),
        strength=0.6, num_inference_steps=STEPS, guidance_scale=4.0, height=SIDE, width=SIDE,
        output_type="latent",
    ).images[0]  # fmt: skip
    ours = our_latents(model, plan_request(params, model), params)
    assert float(theirs.std()) > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


class PixArtAsUNet(nn.Module):
    """A PixArt transformer behind the interface of the network in diffusers' image-to-image pipeline."""

    config: Any

    def __init__(self, transformer: nn.Module, masks: Tensor) -> None:
        super().__init__()
        self.transformer = transformer
        self.masks = masks
        self.dtype, self.device = torch.float32, torch.device("cpu")
        self.config = transformer.config
        self.config.time_cond_proj_dim = None

    def forward(self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        out = self.transformer(
            x, encoder_hidden_states=encoder_hidden_states, encoder_attention_mask=self.masks,
            timestep=t.expand(len(x)), added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample  # fmt: skip
        return (out.chunk(2, dim=1)[0],)


@pytest.mark.filterwarnings("ignore")  # diffusers' deprecation warnings
def test_an_epsilon_model_edits_as_diffusers_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their pipeline and a scheduler with history (DPM-Solver++ 2M) around our family's network."""
    pixart = write_pixart(tmp_path, "sigma")
    model = find_model(str(tmp_path))
    params = GenerationParams(
        "a red apple", "blurry", SIDE, SIDE, STEPS, 4.0, "dpmpp_2m", 1, edit=EditParams(0.6)
    )
    cond, uncond = build_text_encoder(model, dtype=torch.float32).encode(
        [params.prompt, params.negative_prompt]
    )
    pipe = StableDiffusionImg2ImgPipeline(
        vae=pixart.vae, text_encoder=None, tokenizer=None,
        unet=PixArtAsUNet(pixart.transformer, torch.stack([uncond.mask, cond.mask]).long()),
        scheduler=pixart.scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    take_the_mode(pipeline_stable_diffusion_img2img, monkeypatch, noise.draw(1, 0, noise.START, (4, 8, 8)))
    theirs = pipe(
        prompt_embeds=cond.states[None], negative_prompt_embeds=uncond.states[None],
        image=Image.fromarray(image()), strength=0.6, num_inference_steps=STEPS, guidance_scale=4.0,
        output_type="latent",
    ).images[0]  # fmt: skip
    times = [float(t) for t in pipe.scheduler.timesteps][-6:]
    plan = make_plan(
        "dpmpp_2m", model.schedule, model.prediction, 6, grid=(*((t + 1.0) / 1000.0 for t in times), 0.0)
    )
    ours = our_latents(model, plan, params)
    assert float(theirs.std()) > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def test_a_latent_pixel_is_redrawn_if_one_of_its_pixels_is() -> None:
    redraw = np.zeros((64, 64), np.uint8)
    redraw[15, 16] = 1
    start, cost = build_decoder(parts.model()).encode(as_source(image(), redraw))
    assert start.redraw is not None
    assert start.redraw.nonzero().tolist() == [[1, 2]]
    assert cost.flops > 0 and cost.device_seconds > 0.0


def test_what_an_encoder_breaks_is_no_source() -> None:
    decoder = build_decoder(parts.model(), dtype=torch.float32)
    decoder._vae.encoder.layers[-1].bias.data[1] = float("nan")  # type: ignore[union-attr, index]
    with pytest.raises(InvalidImage, match="the encoder left numbers that are not finite"):
        decoder.encode(as_source(image()))


def test_an_autoencoder_with_unequal_scales_cannot_edit() -> None:
    decoder: Any = build_decoder(parts.model(), dtype=torch.float32)
    decoder._vae.options = replace(decoder._vae.options, encoder_block_out_channels=(8, 8))
    assert isinstance(decoder._vae.options, TinyOptions)
    with pytest.raises(InvalidParams, match="shrinks 2 times, and enlarges 8 times"):
        decoder.encode(as_source(image()))
