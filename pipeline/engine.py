"""The engine: samples join, are moved on tick by tick together, and leave, each when its own last tick is done.

No asyncio, no Ray, no locks: one thread owns an engine. A tick is choose, run, settle.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.network import Row
from pipeline import batch
from pipeline.batcher import Batcher
from pipeline.encoder import TextStates
from pipeline.flops import forward_flops, row_flops, text_flops, times_flops
from pipeline.guidance import needs_cond, needs_uncond, scale_at
from pipeline.params import DenoiseUsage, FinishReason, GenerationParams, StageCost
from pipeline.request import Prepared, Sample, Spent, Waiting, start_state
from pipeline.runner import StepRunner
from pipeline.solvers import Plan, canonical_name

PLANS_KEPT = 64

logger = logging.getLogger(__name__)


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
        self._members: batch.Membership | None = None
        self._prepared: OrderedDict[tuple[str, float, str, int, tuple[int, int] | None], Prepared] = OrderedDict()
        self._here: set[str] = set()
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
        if request_id in self._here:
            raise ValueError(f"request {request_id} is already in the engine")
        started = time.perf_counter()
        prepared, flops = self._prepare(params)
        scales = tuple(scale_at(tick.t, params.guidance_scale, params.guidance_interval) for tick in prepared.plan.ticks)
        is_guided = any(map(needs_uncond, scales))
        if is_guided and uncond is None:
            raise ValueError("a guided sample needs the states of its negative prompt")
        waiting = Waiting(
            request_id=request_id,
            params=params,
            prepared=prepared,
            scales=scales,
            cond=cond if any(map(needs_cond, scales)) else None,
            uncond=uncond if is_guided else None,
            arrived=started if arrived is None else arrived,
            spent=Spent(flops=flops, device_seconds=time.perf_counter() - started),
        )
        self._here.add(request_id)
        self._batcher.waiting.append(waiting)

    def abort(self, request_id: str) -> None:
        """Take a sample out now; its outcome comes out of the next `step`. Unknown or finished ids are ignored."""
        sample = self._batcher.remove(request_id)
        if sample is not None:
            self._leave(sample, FinishReason.ABORTED)

    def step(self) -> list[Outcome]:
        """One tick of every running sample; returns the samples that left since the last call."""
        self._admit()
        self._run()
        return self._settle()

    def _admit(self) -> None:
        for waiting in self._batcher.admit():
            try:
                self._batcher.join(self._begin(waiting))
            except Exception as error:  # this sample's fault, not its neighbours'
                logger.exception("a sample could not begin")
                self._leave(waiting, FinishReason.FAILED, f"the sample could not begin: {error}")

    def _begin(self, waiting: Waiting) -> Sample:
        """Put a sample on the device, with what the network makes of its texts; it pays for that itself."""
        started = time.perf_counter()
        params, prepared = waiting.params, waiting.prepared
        shape = self._runner.latent_shape(params.height // self._latent_scale, params.width // self._latent_scale)
        cond, uncond = (None if text is None else self._row(text, prepared, waiting.spent) for text in (waiting.cond, waiting.uncond))
        sample = Sample(
            request_id=waiting.request_id,
            params=params,
            plan=prepared.plan,
            updates=prepared.updates,
            scales=waiting.scales,
            cond=cond,
            uncond=uncond,
            queue_seconds=started - waiting.arrived,
            state=start_state(params, prepared.plan, shape, self._runner.device),
            spent=waiting.spent,
        )
        sample.spent.device_seconds += time.perf_counter() - started
        return sample

    @torch.inference_mode()
    def _run(self) -> None:
        samples = batch.by_shape(self._batcher.running)
        if not samples:
            self.last_tick = TickFacts(0, 0, 0.0, 0)
            return
        started = time.perf_counter()
        if self._members is None or not self._members.holds(samples):
            self._members = batch.make_membership(samples, self._runner.network)
        members = self._members
        rows = [sample.rows for sample in samples]  # of this tick; the next may have others
        gathered = [batch.gather(group) for group in members.groups]
        for group, own, out in zip(members.groups, gathered, self._runner.forward(members, gathered), strict=True):
            batch.scatter(group, batch.update(own, batch.guided(group, out)))
        self._runner.wait()
        self.last_tick = self._bill(samples, rows, time.perf_counter() - started)

    def _bill(self, samples: Sequence[Sample], rows: Sequence[Sequence[Row]], seconds: float) -> TickFacts:
        """Share the tick out over its samples by the operations of their rows."""
        config = self._runner.network.config
        shapes = [sample.x.shape[1:] for sample in samples]
        tokens = [len(own) * (h // config.patch_size) * (w // config.patch_size) for own, (h, w) in zip(rows, shapes, strict=True)]
        flops = [sum(forward_flops(config, h, w, row.text_tokens) for row in own) for own, (h, w) in zip(rows, shapes, strict=True)]
        for sample, own, own_tokens, own_flops in zip(samples, rows, tokens, flops, strict=True):
            spent = sample.spent
            spent.ticks += 1
            spent.rows += len(own)
            spent.tokens += own_tokens
            spent.flops += own_flops
            spent.device_seconds += seconds * own_flops / sum(flops)
        return TickFacts(sum(map(len, rows)), sum(tokens), seconds, sum(flops))

    def _settle(self) -> list[Outcome]:
        for sample in self._batcher.leave():
            if bool(torch.isfinite(sample.x).all()):
                self._leave(sample, FinishReason.DONE)
            else:
                self._leave(sample, FinishReason.FAILED, "the sample diverged to values that are not finite")
        left, self._left = self._left, []
        return left

    def _row(self, text: TextStates, prepared: Prepared, spent: Spent) -> Row:
        """A text under a plan; whoever brings a text pays for it, whoever shares it later does not."""
        config = self._runner.network.config
        row, is_new = self._runner.row(text, prepared.times)
        spent.flops += is_new * text_flops(config, row.text_tokens) + row_flops(config, row.text_tokens, prepared.plan.nfe)
        return row

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

    def _leave(self, sample: Sample | Waiting, reason: FinishReason, error: str | None = None) -> None:
        self._here.discard(sample.request_id)
        if isinstance(sample, Sample):
            self._members = None  # it would keep what has left
        queue_seconds = time.perf_counter() - sample.arrived if isinstance(sample, Waiting) else sample.queue_seconds
        spent = sample.spent
        usage = DenoiseUsage(
            ticks=spent.ticks,
            nfe=spent.ticks,
            rows=spent.rows,
            tokens=spent.tokens,
            cost=StageCost(spent.device_seconds, spent.flops, queue_seconds),
        )
        latents = None
        if isinstance(sample, Sample) and reason is FinishReason.DONE:
            latents = sample.x.to("cpu", copy=True)  # the state is a view of its last batch, and would carry the neighbours along
        self._left.append(Outcome(sample.request_id, reason, latents, usage, error))
