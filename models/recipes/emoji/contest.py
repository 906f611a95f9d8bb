"""Stage `contest`: which objective to train with. A small network under each, for as long, on the same images and captions.

Each becomes a checkpoint of its own in `work/contest`, is drawn with at the model's defaults and judged like the real one; the
table goes beside the weights.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call

from safelight.models.checkpoints.writer import write_index, write_part
from safelight.models.evaluation.gallery import Gallery
from safelight.models.recipes import objectives
from safelight.models.recipes.emoji import data, dit
from safelight.models.recipes.emoji.evaluate import SEED
from safelight.models.recipes.emoji.export import SCHEDULER
from safelight.models.recipes.emoji.sheets import image_of
from safelight.models.recipes.emoji.training import Average, TrainingRun, bfloat16_copies, warmup_stable_decay
from safelight.models.recipes.emoji.views import NATIVE
from safelight.models.text.clip import ClipTextTower
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.diffusion.schedules import Flow, Schedule, VariancePreserving
from safelight.pipeline.evaluation.nearest_image import Rate, judge
from safelight.pipeline.evaluation.prompts import own_sets
from safelight.pipeline.evaluation.renderer import Renderer

SMALL = replace(dit.CONFIG, num_attention_heads=2, num_layers=4)  # an eighth of the work
SET = "names"
COSINE, LINEAR, STRAIGHT = VariancePreserving("cosine"), VariancePreserving("linear"), Flow()

Times = Callable[[int, torch.Generator], Tensor]
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Schedule], Tensor]  # of out, x0, eps, t


def uniform_times(num: int, generator: torch.Generator) -> Tensor:
    """Stratified times (num,) in (0, 1), as the discrete diffusions draw their steps."""
    return (torch.randperm(num, generator=generator) + torch.rand(num, generator=generator)) / num


def noisy_times(num: int, generator: torch.Generator) -> Tensor:
    """The times of stage `dit`."""
    return objectives.logit_normal_times(num, generator, dit.NOISINESS)


@dataclass(frozen=True, slots=True)
class Contender:
    """An objective: a noise schedule, what is predicted, how its error counts, which times are drawn, and what diffusers calls it."""

    schedule: Schedule
    loss: Loss
    times: Times
    scheduler: dict[str, object]


def _noise_scheduler(beta_schedule: str, prediction: str) -> dict[str, object]:
    of_flow = ("use_flow_sigmas", "flow_shift")
    rest = {key: value for key, value in SCHEDULER.items() if key not in of_flow}
    ends = {"beta_start": 1e-4, "beta_end": 0.02} if beta_schedule == "linear" else {}
    return rest | {"beta_schedule": beta_schedule, "prediction_type": prediction} | ends


def _simple(out: Tensor, x0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    return objectives.simple_loss(out, eps)


def _velocity(out: Tensor, x0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    return objectives.flow_matching_loss(out, x0, eps)


CONTENDERS = {
    "eps, linear betas": Contender(LINEAR, _simple, uniform_times, _noise_scheduler("linear", "epsilon")),
    "eps, cosine betas": Contender(
        COSINE, _simple, uniform_times, _noise_scheduler("squaredcos_cap_v2", "epsilon")
    ),
    "v, cosine betas": Contender(
        COSINE, objectives.v_loss, uniform_times, _noise_scheduler("squaredcos_cap_v2", "v_prediction")
    ),
    "flow, logit-normal": Contender(STRAIGHT, _velocity, objectives.logit_normal_times, SCHEDULER),
    "flow, leaning to the noise": Contender(STRAIGHT, _velocity, noisy_times, SCHEDULER),
}


def run(work: Path, weights: Path, num_steps: int, limit: int, seed: int = 0) -> None:
    """Train and judge every contender; write `weights/objectives.json`."""
    material = dit.Material(work, data.load(work), ClipTextTower(work / "text_encoder"), seed)
    rows = {}
    for name, contender in CONTENDERS.items():
        folder = work / "contest" / name.replace(", ", "-").replace(" ", "-")
        _train(folder, contender, material, num_steps, seed)
        for part in ("vae", "text_encoder"):
            if not (folder / part).exists():
                (folder / part).symlink_to((work / part).resolve())
        rows[name] = {figure: rate.as_dict() for figure, rate in _judged(folder, weights, limit).items()}
        print(json.dumps({name: rows[name]}), flush=True)
    found = {
        "steps": num_steps,
        "batch": dit.BATCH,
        "network": SMALL.to_diffusers(),
        "set": SET,
        "prompts": limit,
        "contenders": rows,
    }
    (weights / "objectives.json").write_text(json.dumps(found, indent=1) + "\n")


def _train(folder: Path, contender: Contender, material: dit.Material, num_steps: int, seed: int) -> None:
    """The contender's checkpoint folder, but for the parts that all share."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = dit.Conditioned(dit.build(SMALL))

    def loss_of_step(step: int, generator: torch.Generator) -> Tensor:
        batch = material.batch(NATIVE, generator)
        eps = torch.randn(batch.x0.shape, generator=generator)
        t = contender.times(len(eps), generator)
        x = objectives.noised(batch.x0, eps, t, contender.schedule)
        timesteps = torch.tensor([contender.schedule.timestep(float(u)) for u in t])
        out = functional_call(
            model, bfloat16_copies(model), (x.bfloat16(), timesteps, batch.states, batch.mask)
        )
        return contender.loss(out, batch.x0, eps, t, contender.schedule)

    run = TrainingRun(
        folder.name,
        model,
        dit.optimisers(model),
        Average(model, 0.9995),
        num_steps,
        folder / "state.ckpt",
        100,
        warmup_stable_decay,
    )
    run.train(loss_of_step, seed)
    write_part(
        folder / "transformer",
        SMALL.to_diffusers(),
        {name: p.bfloat16() for name, p in model.dit.state_dict().items()},
    )
    write_index(folder, contender.scheduler)


def _judged(folder: Path, weights: Path, limit: int) -> dict[str, Rate]:
    model = find_model(str(folder))
    prompts = own_sets(weights)[SET][:limit]
    drawn = Renderer(model).draw([image_of(prompt.text, SEED + i, model) for i, prompt in enumerate(prompts)])
    found = judge(Gallery.load(weights), prompts, drawn)
    return {figure: found[figure] for figure in ("concept_top1", "concept_top5")}
