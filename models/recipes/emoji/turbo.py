"""Stage `turbo`: a student that draws in one to four evaluations without guidance, distilled from the base.

Direct distillation. Times are the four of a trailing grid with the model's shift. From each of them the base,
under guidance, takes several Euler steps to the next time; the student, started from the base's weights,
learns the one velocity that covers the same way. It learns on noised data, on every size and background.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from safelight.models.recipes import objectives
from safelight.models.recipes.emoji import data, dit, text, views
from safelight.models.recipes.emoji.schedule import SCHEDULER
from safelight.models.recipes.emoji.training import (
    TrainingRun,
    WeightAverage,
    forward_function,
    warmup_cosine,
)
from safelight.models.text.clip import ClipTextTower
from safelight.pipeline.assembly.device import fast_device
from safelight.pipeline.diffusion.schedules import NUM_TRAIN_STEPS

CHECKPOINT = "turbo.ckpt"
EVALUATIONS = 4
SUB_STEPS = 4  # of the base, between two times of the student
GUIDANCE = 4.0
BATCH = 32
RATE = 0.4  # a factor of the base's learning rates, which falls over the run
FIRST_SHARE = 0.4  # of samples in the first interval, where the concept is decided; the others share the rest

Velocity = Callable[[Tensor, Tensor], Tensor]  # of latents (B, C, h, w) and times (B,)


def run(work: Path, options: dit.TrainingOptions) -> None:
    """Train the student from `dit.latest`; the state is in `work/turbo.ckpt`."""
    torch.manual_seed(options.seed)
    device = fast_device()
    base, student = (_load(work).to(device) for _ in range(2))
    base.requires_grad_(False)
    tower = ClipTextTower(text.tower_folder(work)).to(device)
    batches = dit.TrainingBatches(work, data.load(work), tower, options.seed)
    draw_base, draw_student = forward_function(base), forward_function(student)

    def loss_of_step(step: int, generator: torch.Generator) -> Tensor:
        size = dit.size_of_batch(generator) if options.other_sizes else views.NATIVE
        batch = batches.draw(size, generator, options.batch)
        velocity = guided(draw_base, batch, batches.encode([""]))
        return loss(draw_student, velocity, batch, generator)

    TrainingRun(
        "turbo",
        student,
        dit.optimisers(student),
        WeightAverage(student, decay=0.99),
        options.num_steps,
        work / CHECKPOINT,
        schedule=lambda *step: RATE * options.rate * warmup_cosine(*step),
        save_every_s=300.0,
        minutes=options.minutes,
    ).train(loss_of_step, options.seed)


def loss(
    student: Callable[..., Tensor], velocity: Velocity, batch: dit.Batch, generator: torch.Generator
) -> Tensor:
    """Mean squared error of the student's velocity to the one that covers the base's sub-steps.

    Args:
        student: latents, timesteps, states and mask to a velocity.
        velocity: the base's, under guidance.
        batch: clean latents and their texts.
        generator: draws noise and intervals.
    """
    device = batch.x0.device
    eps = torch.randn(batch.x0.shape, generator=generator).to(device)
    times = sub_times()[draw_intervals(len(eps), generator)].to(device)  # (B, SUB_STEPS + 1)
    x = objectives.flow_sample(batch.x0, eps, times[:, 0])
    with torch.no_grad():
        target = covering_velocity(velocity, x, times)
    out = student(x, NUM_TRAIN_STEPS * times[:, 0], batch.states, batch.mask)
    return F.mse_loss(out.float(), target)


def sub_times() -> Tensor:
    """The base's times from each time of the student to the next, (EVALUATIONS, SUB_STEPS + 1)."""
    shift = float(str(SCHEDULER["flow_shift"]))
    u = torch.linspace(1.0, 0.0, EVALUATIONS * SUB_STEPS + 1)
    times = shift * u / (1.0 + (shift - 1.0) * u)
    return times.unfold(0, SUB_STEPS + 1, SUB_STEPS)


def draw_intervals(num: int, generator: torch.Generator) -> Tensor:
    """Draw intervals (num,): the first with `FIRST_SHARE`, the others equally often."""
    weights = torch.full((EVALUATIONS,), (1.0 - FIRST_SHARE) / (EVALUATIONS - 1))
    weights[0] = FIRST_SHARE
    return torch.multinomial(weights, num, replacement=True, generator=generator)


def covering_velocity(velocity: Velocity, x: Tensor, times: Tensor) -> Tensor:
    """The constant velocity from `x` (B, C, h, w) to where Euler steps over `times` (B, N + 1) lead."""
    end = x
    for first, last in zip(times.unbind(1), times.unbind(1)[1:], strict=False):
        end = end + (last - first)[:, None, None, None] * velocity(end, first)
    return (end - x) / (times[:, -1] - times[:, 0])[:, None, None, None]


def guided(base: Callable[..., Tensor], batch: dit.Batch, empty: tuple[Tensor, Tensor]) -> Velocity:
    """The base's velocity with the texts of `batch`, guided away from the empty text's states and mask."""
    states, mask = batch.states, batch.mask
    missing = states.shape[1] - empty[0].shape[1]
    empty_states = F.pad(empty[0], (0, 0, 0, missing)).expand_as(states)
    empty_mask = F.pad(empty[1], (0, missing)).expand_as(mask)
    both_states, both_masks = torch.cat([states, empty_states]), torch.cat([mask, empty_mask])

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        out = base(torch.cat([x, x]), NUM_TRAIN_STEPS * torch.cat([t, t]), both_states, both_masks)
        with_text, without = out.float().chunk(2)
        return without + GUIDANCE * (with_text - without)

    return velocity


def _load(work: Path) -> dit.ConditionedDiT:
    model = dit.ConditionedDiT(dit.build())
    model.load_state_dict(torch.load(dit.latest(work), map_location="cpu", weights_only=True)["module"])
    return model
