"""The fused update of any mix of samples against a plain reference run of each."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import pytest
import torch
from torch import Tensor

from safelight.models.networks.interface import PackedNetwork
from safelight.pipeline.diffusion import noise
from safelight.pipeline.diffusion.guidance import guides
from safelight.pipeline.diffusion.reference import generate_one
from safelight.pipeline.diffusion.schedules import Flow, Schedule, VarianceExploding, VariancePreserving
from safelight.pipeline.diffusion.solvers import READ, SERVED, SOLVERS, STATE, canonical_name, make_plan
from safelight.pipeline.diffusion.spacing import SPACINGS
from safelight.pipeline.engine import batch
from safelight.pipeline.engine.sample import RunningSample, start_state
from safelight.pipeline.params import GenerationParams
from safelight.pipeline.scheduling.cost_curve import UNKNOWN
from safelight.pipeline.scheduling.workload import make_workload

SHAPE = (4, 6, 6)
SHAPES = (SHAPE, (4, 4, 8), (4, 8, 4))
CASES: list[tuple[Schedule, str]] = [
    (Flow(), "flow"),
    (Flow(3.0), "flow"),
    (VariancePreserving("linear"), "epsilon"),
    (VariancePreserving("scaled_linear"), "epsilon"),
    (VariancePreserving("scaled_linear"), "v_prediction"),
    (VariancePreserving("cosine"), "v_prediction"),
    (VarianceExploding(0.02, 30.0), "sample"),
]


def network(x: Tensor, timestep: Tensor | float, text: Tensor | float) -> Tensor:
    """An elementwise network, shared by all rows; `text` stands for the prompt."""
    return 0.3 * torch.sin(x + 0.002 * timestep) + 0.1 * text * torch.cos(0.5 * x)


@dataclass(frozen=True)
class Row:
    """A text, and the times of its plan (T,)."""

    text: float
    times: Tensor
    text_tokens: int = 0


class Elementwise:
    """`network` with the interface of packed networks."""

    config = None

    def prepare_times(self, timesteps: Tensor, size: tuple[int, int]) -> Tensor:
        return timesteps

    def prepare_row(self, states: Tensor, mask: Tensor, pooled: Tensor | None, times: Tensor) -> Row:
        return Row(float(states), times)

    def collate(self, rows: Sequence[Row], shapes: Sequence[tuple[int, int]]) -> tuple[Row, ...]:
        return tuple(rows)

    def predict(self, latents: Sequence[Tensor], rows: tuple[Row, ...], steps: Sequence[int]) -> list[Tensor]:
        times = torch.stack([row.times[step] for row, step in zip(rows, steps, strict=True)])
        times = times[:, None, None, None]
        texts = torch.tensor([row.text for row in rows])[:, None, None, None]
        lengths = [len(x) for x in latents]
        groups = zip(latents, torch.split(times, lengths), torch.split(texts, lengths), strict=True)
        return [network(*group) for group in groups]


def random_case(rng: random.Random, solver: str | None = None) -> tuple[GenerationParams, Schedule, str]:
    """A random case, with this solver if one is given."""
    if solver is None:
        schedule, prediction = rng.choice(CASES)
        solver = rng.choice(
            [name for name in (*SERVED, "ddim") if schedule.family in SOLVERS[canonical_name(name)].families]
        )
    else:
        schedule, prediction = rng.choice(
            [case for case in CASES if case[0].family in SOLVERS[canonical_name(solver)].families]
        )
    params = GenerationParams(
        "", "", 0, 0,
        num_steps=rng.randint(4, 24),
        guidance_scale=rng.choice([0.0, 1.0, rng.uniform(1, 9)]),
        solver=solver,
        seed=rng.randrange(2**53),
        image_index=rng.randrange(10),
        timestep_spacing=rng.choice([*SPACINGS]) if solver != "plms" else "trailing",
        eta=rng.random() if solver == "ddim" else 0.0,
        guidance_interval=rng.choice([(0.0, 1.0), (0.2, 0.9)]),
        guidance_stride=rng.choice([1, 1, 3]),
        guidance_rescale=rng.choice([0.0, 0.0, 0.7]),
    )  # fmt: skip
    return params, schedule, prediction


def make_sample(
    params: GenerationParams, schedule: Schedule, prediction: str, shape: tuple[int, int, int] = SHAPE
) -> RunningSample:
    table = make_plan(
        params.solver, schedule, prediction, params.num_steps, spacing=params.timestep_spacing, eta=params.eta
    )
    timesteps = torch.tensor([tick.timestep for tick in table.ticks])
    return RunningSample(
        request_id=str(params.seed),
        params=params,
        plan=table,
        updates=torch.tensor(table.matrices(), dtype=torch.float64).float(),
        guides=guides(
            (tick.t for tick in table.ticks),
            params.guidance_scale,
            params.guidance_interval,
            params.guidance_stride,
        ),
        cond=Row(1.0, timesteps, text_tokens=params.seed % 3),  # so that a sample's rows are not adjacent
        uncond=Row(0.0, timesteps, text_tokens=1),
        workload=make_workload([1], [1.0], 1, UNKNOWN, arrived=0.0),
        queue_seconds=0.0,
        state=start_state(params, table, shape, torch.device("cpu")),
    )


NETWORK = Elementwise()


def run(samples: list[RunningSample]) -> None:
    """Run tick by tick until all are done, each leaving after its own last tick."""
    while running := [s for s in samples if not s.is_done]:
        layout = batch.make_layout(batch.by_shape(running), cast(PackedNetwork, NETWORK))
        buffers = [batch.gather(group) for group in layout.groups]
        latents = [
            group_buffers.x[group.row_sample]
            for group, group_buffers in zip(layout.groups, buffers, strict=True)
        ]
        outputs = NETWORK.predict(latents, layout.rows, layout.steps)
        for group, group_buffers, out in zip(layout.groups, buffers, outputs, strict=True):
            batch.scatter(group, batch.update(group_buffers, batch.guided(group, out)))


def reference(params: GenerationParams, schedule: Schedule, prediction: str) -> Tensor:
    def network_of(text: float) -> Callable[[Tensor, float], Tensor]:
        return lambda x, timestep: network(x, timestep, text)

    p, start = params, make_plan("euler", schedule, prediction, 1).start_scale
    solver = "ddim" if p.eta else canonical_name(p.solver)
    return generate_one(
        network_of(1.0), network_of(0.0), p.guidance_scale, prediction, schedule, solver, p.num_steps,
        start * noise.draw(p.seed, p.image_index, noise.START, SHAPE).double(),
        lambda k: noise.draw(p.seed, p.image_index, k + 1, SHAPE),
        spacing=p.timestep_spacing, eta=p.eta, guidance_interval=p.guidance_interval,
        guidance_stride=p.guidance_stride, guidance_rescale=p.guidance_rescale,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_64_different_samples_equal_64_reference_runs(seed: int) -> None:
    rng = random.Random(seed)
    cases = [random_case(rng, solver) for solver in (*SERVED, "ddim")]  # every one at least once
    cases += [random_case(rng) for _ in range(64 - len(cases))]
    rng.shuffle(cases)
    samples = [make_sample(*case) for case in cases]
    run(samples)
    worst = {}
    for case, sample in zip(cases, samples, strict=True):
        expected = reference(*case)
        scale = max(1.0, float(expected.abs().max()))
        # A reused difference repeats its rounding error.
        reused = 10.0 if case[0].guidance_stride > 1 else 1.0
        worst[case] = float((sample.x.double() - expected).abs().max()) / scale / reused
    case = max(worst, key=worst.__getitem__)
    assert worst[case] < 1e-5, (
        f"{case}: {worst[case]:.1e}; {sum(e >= 1e-5 for e in worst.values())} of 64 are off"
    )


@pytest.mark.parametrize("shape", [(4, 8, 8), (8, 12, 20), (8, 16, 16), (16, 32, 32), (4, 128, 128)], ids=str)
def test_the_bits_of_an_update_do_not_depend_on_the_number_of_samples(shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    read = torch.randn(9, len(READ), *shape, generator=generator)
    tables = torch.randn(9, len(STATE), len(READ), generator=generator)
    out = torch.randn(9, *shape, generator=generator)

    def updated(first: int, num: int) -> Tensor:
        part = slice(first, first + num)
        written = torch.empty(num, len(STATE), *shape)
        return batch.update(batch.UpdateBuffers(read[part].clone(), written, tables[part]), out[part])

    alone = torch.cat([updated(i, 1) for i in range(9)])
    for num in (2, 3, 4, 5, 9):
        for first in {0, 9 - num}:
            assert torch.equal(updated(first, num), alone[first : first + num]), (first, num)


def test_a_sample_has_the_same_bits_in_a_batch_as_alone() -> None:
    rng = random.Random(1)
    cases = [(*random_case(rng), rng.choice(SHAPES)) for _ in range(24)]
    together = [make_sample(*case) for case in cases]
    run(together)
    for case, batched in zip(cases, together, strict=True):
        alone = [make_sample(*case)]
        run(alone)
        assert torch.equal(alone[0].state, batched.state), case
