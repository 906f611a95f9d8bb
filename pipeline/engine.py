"""The engine: samples join, are moved on tick by tick together, and leave, each when its own last tick is done.

No asyncio, no Ray, no locks: one thread owns an engine. A tick is choose, run, settle.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.network import Times
from pipeline import batch
from pipeline.batcher import Batcher
from pipeline.encoder import TextStates
from pipeline.flops import forward_flops, row_flops, times_flops
from pipeline.guidance import needs_cond, needs_uncond, scale_at
from pipeline.params import DenoiseUsage, FinishReason, GenerationParams, StageCost
from pipeline.request import Sample, Spent, start_state
from pipeline.runner import StepRunner
from pipeline.solvers import Plan, canonical_name

PLANS_KEPT = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """A sample that left: its latents (C, H, W) if it was done, the reason and what it cost in any case."""

    request_id: str
    reason: FinishReason
    latents: Tensor | None
    usage: DenoiseUsage
    error: str | None = None


@dataclass(frozen=True, slots=True)
class TickFacts:
    """What the last tick did."""

    rows: int
    tokens: int
    seconds: float
    flops: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """What all samples with the same solver and steps share."""

    plan: Plan
    updates: Tensor
    times: Times


class Engine:
    """Step-level batching of samples that differ in steps, solver, guidance and text.

    `make_plan(params)` plans a sample; `latent_scale` is how many pixels on a side one latent pixel stands for.
    """

    def __init__(self, runner: StepRunner, make_plan: Callable[[GenerationParams], Plan], latent_scale: int, max_rows: int = 16):
        if max_rows < 2:
            raise ValueError("max_rows must be at least 2: a guided sample has two rows")
        self._runner = runner
        self._make_plan = make_plan
        self._latent_scale = latent_scale
        self._batcher = Batcher(max_rows)
        self._left: list[Outcome] = []
        self._members: dict[tuple[int, ...], batch.Membership] = {}
        self._prepared: OrderedDict[tuple[str, float, str, int, tuple[int, int] | None], Prepared] = OrderedDict()
        self._arrived: dict[str, float] = {}
        self.last_tick: TickFacts | None = None

    @property
    def num_waiting(self) -> int:
        return len(self._batcher.waiting)

    @property
    def num_running(self) -> int:
        return len(self._batcher.running)

    @property
    def has_work(self) -> bool:
        return bool(self._batcher.waiting or self._batcher.running or self._left)

    def add(
        self, request_id: str, params: GenerationParams, cond: TextStates, uncond: TextStates | None, arrived: float | None = None
    ) -> None:
        """Queue a sample that has waited since `arrived` (by `time.perf_counter`; default: now).

        Raises `InvalidParams` if it cannot be drawn, `ValueError` if the id is already here.
        """
        if request_id in self._arrived:
            raise ValueError(f"request {request_id} is already in the engine")
        started = time.perf_counter()
        sample = self._start(request_id, params, cond, uncond)
        sample.spent.device_seconds += time.perf_counter() - started
        self._arrived[request_id] = started if arrived is None else arrived
        self._batcher.waiting.append(sample)

    def abort(self, request_id: str) -> None:
        """Take a sample out now; its outcome comes out of the next `step`. Unknown or finished ids are ignored."""
        sample = self._batcher.remove(request_id)
        if sample is not None:
            self._left.append(self._outcome(sample, FinishReason.ABORTED))

    def step(self) -> list[Outcome]:
        """One tick of every running sample; returns the samples that left since the last call."""
        self._admit()
        self._run()
        return self._settle()

    def _admit(self) -> None:
        now = time.perf_counter()
        for sample in self._batcher.admit():
            sample.queue_seconds = now - self._arrived[sample.request_id]

    def _run(self) -> None:
        facts = [self._tick(group) for group in self._batcher.groups()]
        running = {s for s in self._batcher.running if not s.is_done}
        self._members = {key: m for key, m in self._members.items() if running.issuperset(m.samples)}
        self.last_tick = TickFacts(
            sum(f.rows for f in facts), sum(f.tokens for f in facts), sum(f.seconds for f in facts), sum(f.flops for f in facts)
        )

    @torch.inference_mode()
    def _tick(self, samples: tuple[Sample, ...]) -> TickFacts:
        started = time.perf_counter()
        members = self._membership(samples)
        gathered = batch.gather(members)
        out = self._runner.forward(members, gathered)
        rows = [sample.num_rows for sample in samples]  # of this tick; the next may have others
        batch.scatter(members, batch.update(gathered, batch.guided(members, out)))
        self._runner.wait()
        seconds = time.perf_counter() - started
        return self._bill(samples, rows, seconds)

    def _bill(self, samples: tuple[Sample, ...], rows: list[int], seconds: float) -> TickFacts:
        """Share the tick out over its samples by their rows, which here are all of one size."""
        _, height, width = samples[0].x.shape
        config = self._runner.network.config
        tokens = (height // config.patch_size) * (width // config.patch_size)
        flops = forward_flops(config, height, width, samples[0].text_tokens)
        total = sum(rows)
        for sample, own in zip(samples, rows, strict=True):
            spent = sample.spent
            spent.ticks += 1
            spent.rows += own
            spent.tokens += own * tokens
            spent.flops += own * flops
            spent.device_seconds += seconds * own / total
        return TickFacts(total, total * tokens, seconds, total * flops)

    def _settle(self) -> list[Outcome]:
        left, self._left = self._left, []
        for sample in self._batcher.leave():
            finite = bool(torch.isfinite(sample.x).all())
            reason = FinishReason.DONE if finite else FinishReason.FAILED
            left.append(self._outcome(sample, reason, None if finite else "the sample diverged to values that are not finite"))
        return left

    def _membership(self, samples: tuple[Sample, ...]) -> batch.Membership:
        key = tuple(samples[0].x.shape)
        members = self._members.get(key)
        if members is None or not members.holds(samples):
            members = self._members[key] = batch.make_membership(samples, self._runner.network)
        return members

    def _start(self, request_id: str, params: GenerationParams, cond: TextStates, uncond: TextStates | None) -> Sample:
        prepared, plan_flops = self._prepare(params)
        scales = tuple(scale_at(tick.t, params.guidance_scale, params.guidance_interval) for tick in prepared.plan.ticks)
        if any(map(needs_uncond, scales)) and uncond is None:
            raise ValueError("a guided sample needs the states of its negative prompt")
        wanted = (cond if any(map(needs_cond, scales)) else None, uncond if any(map(needs_uncond, scales)) else None)
        shape = self._runner.latent_shape(params.height // self._latent_scale, params.width // self._latent_scale)
        text_tokens, num_times = len(cond.mask), prepared.plan.nfe
        text_flops = row_flops(self._runner.network.config, text_tokens, num_times) * sum(t is not None for t in wanted)
        cond_row, uncond_row = (None if t is None else self._runner.row(t, prepared.times) for t in wanted)
        return Sample(
            request_id=request_id,
            params=params,
            plan=prepared.plan,
            updates=prepared.updates,
            scales=scales,
            cond=cond_row,
            uncond=uncond_row,
            text_tokens=text_tokens,
            queue_seconds=0.0,
            state=start_state(params, prepared.plan, shape, self._runner.device),
            spent=Spent(flops=text_flops + plan_flops),
        )

    def _prepare(self, params: GenerationParams) -> tuple[Prepared, int]:
        """The plan and what it cost now: who brings a plan pays for its times, who shares it later does not."""
        name = params.solver if params.eta else canonical_name(params.solver)
        size = (params.height, params.width) if self._runner.network.config.is_sized else None
        key = (name, params.eta, params.timestep_spacing, params.num_steps, size)
        if key in self._prepared:
            self._prepared.move_to_end(key)
            return self._prepared[key], 0
        plan = self._make_plan(params)
        self._prepared[key] = Prepared(plan, self._runner.updates(plan), self._runner.times(plan, (params.height, params.width)))
        if len(self._prepared) > PLANS_KEPT:
            self._prepared.popitem(last=False)
        return self._prepared[key], times_flops(self._runner.network.config, plan.nfe)

    def _outcome(self, sample: Sample, reason: FinishReason, error: str | None = None) -> Outcome:
        spent = sample.spent
        del self._arrived[sample.request_id]
        usage = DenoiseUsage(
            ticks=spent.ticks,
            nfe=spent.ticks,
            rows=spent.rows,
            tokens=spent.tokens,
            cost=StageCost(spent.device_seconds, spent.flops, sample.queue_seconds),
        )
        # a copy: the state is a view of its last batch, and would carry the neighbours along to the next stage
        return Outcome(sample.request_id, reason, sample.x.to("cpu", copy=True) if reason is FinishReason.DONE else None, usage, error)
