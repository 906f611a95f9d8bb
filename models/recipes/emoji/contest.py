"""Stage `contest`: compare training objectives on a small network, with equal images, captions and steps.

Each objective gives a checkpoint in `work/contest`, whose images at the model's defaults are rated like the
real model's. The results go beside the weights.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from safelight.models.checkpoints.writer import write_index, write_part
from safelight.models.evaluation.gallery import Gallery
from safelight.models.recipes import objectives
from safelight.models.recipes.emoji import data, dit, text
from safelight.models.recipes.emoji.evaluate import SEED
from safelight.models.recipes.emoji.schedule import SCHEDULER
from safelight.models.recipes.emoji.sheets import default_request
from safelight.models.recipes.emoji.training import (
    TrainingRun,
    WeightAverage,
    forward_function,
    warmup_stable_decay,
)
from safelight.models.recipes.emoji.views import NATIVE
from safelight.models.text.clip import ClipTextTower
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.diffusion.schedules import Flow, Schedule, VariancePreserving
from safelight.pipeline.evaluation.nearest_image import Rate, rate_images
from safelight.pipeline.evaluation.prompts import read_prompt_sets
from safelight.pipeline.evaluation.renderer import Renderer

# The network of every objective, with an eighth of the full model's compute.
SMALL = replace(dit.CONFIG, num_attention_heads=2, num_layers=4)
SET = "names"
COSINE, LINEAR, STRAIGHT = VariancePreserving("cosine"), VariancePreserving("linear"), Flow()

Times = Callable[[int, torch.Generator], Tensor]  # of the number of samples and the generator
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Schedule], Tensor]  # of out, x0, eps, t, schedule


def uniform_times(num: int, generator: torch.Generator) -> Tensor:
    """Draw stratified uniform times (num,) in (0, 1), as discrete diffusion models draw their steps."""
    return (torch.randperm(num, generator=generator) + torch.rand(num, generator=generator)) / num


def noisy_times(num: int, generator: torch.Generator) -> Tensor:
    """Draw times (num,) as stage `dit` does: more of them near the noise."""
    return objectives.logit_normal_times(num, generator, dit.MEAN_LOGIT_TIME)


@dataclass(frozen=True, slots=True)
class TrainingObjective:
    """A noise schedule with a loss, a distribution of times, and the options of its diffusers scheduler."""

    schedule: Schedule
    loss: Loss
    times: Times
    scheduler: dict[str, object]


def _noise_scheduler(beta_schedule: str, prediction: str) -> dict[str, object]:
    flow_options = ("use_flow_sigmas", "flow_shift")
    common = {key: value for key, value in SCHEDULER.items() if key not in flow_options}
    betas = {"beta_start": 1e-4, "beta_end": 0.02} if beta_schedule == "linear" else {}
    return common | {"beta_schedule": beta_schedule, "prediction_type": prediction} | betas


def _simple(out: Tensor, x0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    return objectives.simple_loss(out, eps)


def _velocity(out: Tensor, x0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    return objectives.flow_matching_loss(out, x0, eps)


OBJECTIVES = {
    "eps, linear betas": TrainingObjective(
        LINEAR, _simple, uniform_times, _noise_scheduler("linear", "epsilon")
    ),
    "eps, cosine betas": TrainingObjective(
        COSINE, _simple, uniform_times, _noise_scheduler("squaredcos_cap_v2", "epsilon")
    ),
    "v, cosine betas": TrainingObjective(
        COSINE, objectives.v_loss, uniform_times, _noise_scheduler("squaredcos_cap_v2", "v_prediction")
    ),
    "flow, logit-normal": TrainingObjective(STRAIGHT, _velocity, objectives.logit_normal_times, SCHEDULER),
    "flow, leaning to the noise": TrainingObjective(STRAIGHT, _velocity, noisy_times, SCHEDULER),
}


def run(work: Path, weights: Path, num_steps: int, limit: int, seed: int = 0) -> None:
    """Train and rate a small network under every objective; write `weights/objectives.json`.

    Args:
        work: the recipe's folder.
        weights: the folder of the exported model, with its gallery and prompts.
        num_steps: training steps for each objective.
        limit: the largest number of prompts to rate.
        seed: of weights and batches.
    """
    batches = dit.TrainingBatches(work, data.load(work), ClipTextTower(text.tower_folder(work)), seed)
    rows = {}
    for name, objective in OBJECTIVES.items():
        folder = work / "contest" / name.replace(", ", "-").replace(" ", "-")
        _train(folder, objective, batches, num_steps, seed)
        for part, source in (("vae", work / "vae"), ("text_encoder", text.tower_folder(work))):
            if not (folder / part).exists():
                (folder / part).symlink_to(source.resolve())
        rows[name] = {figure: rate.as_dict() for figure, rate in _rate(folder, weights, limit).items()}
        print(json.dumps({name: rows[name]}), flush=True)
    results = {
        "steps": num_steps,
        "batch": dit.BATCH,
        "network": SMALL.to_diffusers(),
        "set": SET,
        "prompts": limit,
        "contenders": rows,
    }
    (weights / "objectives.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(rows))


def table(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The rates by objective as a Markdown table."""
    lines = ["| objective, times | concept top-1 | top-5 |", "|---|---|---|"]
    for name, rates in rows.items():
        top1, top5 = rates["concept_top1"], rates["concept_top5"]
        cell = f"{top1['rate']:.1%} ({top1['low']:.1%} to {top1['high']:.1%})"
        lines.append(f"| {name} | {cell} | {top5['rate']:.1%} |")
    return "\n".join(lines)


def _train(
    folder: Path, objective: TrainingObjective, batches: dit.TrainingBatches, num_steps: int, seed: int
) -> None:
    """Train under an objective, and write its checkpoint without the parts that all objectives share.

    Args:
        folder: where to write.
        objective: the objective.
        batches: the training batches.
        num_steps: the number of steps.
        seed: of weights and batches.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = dit.ConditionedDiT(dit.build(SMALL))
    forward = forward_function(model)

    def loss_of_step(step: int, generator: torch.Generator) -> Tensor:
        batch = batches.draw(NATIVE, generator)
        eps = torch.randn(batch.x0.shape, generator=generator)
        t = objective.times(len(eps), generator)
        x = objectives.add_noise(batch.x0, eps, t, objective.schedule)
        timesteps = torch.tensor([objective.schedule.timestep(float(u)) for u in t])
        out = forward(x, timesteps, batch.states, batch.mask)
        return objective.loss(out, batch.x0, eps, t, objective.schedule)

    run = TrainingRun(
        folder.name,
        model,
        dit.optimisers(model),
        WeightAverage(model, 0.9995),
        num_steps,
        folder / "state.ckpt",
        warmup=100,
        schedule=warmup_stable_decay,
    )
    run.train(loss_of_step, seed)
    write_part(
        folder / "transformer",
        SMALL.to_diffusers(),
        {name: tensor.bfloat16() for name, tensor in model.dit.state_dict().items()},
    )
    write_index(folder, objective.scheduler)


def _rate(folder: Path, weights: Path, limit: int) -> dict[str, Rate]:
    """The rates of a checkpoint in `folder` on at most `limit` prompts of the set."""
    model = find_model(str(folder))
    prompts = read_prompt_sets(weights)[SET][:limit]
    requests = [default_request(prompt.text, SEED + i, model) for i, prompt in enumerate(prompts)]
    rates = rate_images(Gallery.load(weights), prompts, Renderer(model).render(requests))
    return {name: rates[name] for name in ("concept_top1", "concept_top5")}
