"""The engine: samples join, are moved on tick by tick together, and leave, each when its own last tick is done.

No asyncio, no Ray, no locks: one thread owns an engine. A tick is choose, run, settle.
"""

import heapq
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from safelight.models.networks.interface import NetworkConfig, Row
from safelight.pipeline.diffusion.guidance import Guide, guides
from safelight.pipeline.diffusion.solvers import Plan, canonical_name
from safelight.pipeline.engine import batch
from safelight.pipeline.engine.runner import StepRunner, bucket
from safelight.pipeline.engine.sample import DevicePlan, QueuedSample, RunningSample, UsageSoFar, start_state
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.flops.denoiser import forward_flops, row_flops, text_flops, times_flops
from safelight.pipeline.params import DenoiseUsage, FinishReason, GenerationParams, StageCost
from safelight.pipeline.scheduling.batcher import Limits, in_arrival_order
from safelight.pipeline.scheduling.cost_curve import UNKNOWN, CostCurve
from safelight.pipeline.scheduling.forecast import RECENT_ARRIVALS, finish_times
from safelight.pipeline.scheduling.queue import WaitingQueue, select_next_batch
from safelight.pipeline.scheduling.workload import SampleWorkload, make_workload

PLANS_KEPT = 64
EXPLORE = (
    64  # every how many ticks one may be as large as the limits allow, whatever the curve says of such ticks
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SampleOutcome:
    """A sample that left: its latents (C, H, W) if it was done, the reason and what it cost in any case."""

    request_id: str
    reason: FinishReason
    latents: Tensor | None
    usage: DenoiseUsage
    error: str | None = None


@dataclass(frozen=True, slots=True)
class TickRecord:
    """What the last tick did."""

    rows: int
    tokens: int
    seconds: float
    flops: int
    expected_seconds: float = 0.0  # by the curve as it was before


class Engine:
    """Step-level batching of samples that differ in steps, solver, guidance, size and text.

    `make_plan(params)` plans a sample; `latent_scale` is how many pixels on a side one latent pixel stands for. Of those who
    are here each tick moves on the samples that `batcher.choose` takes, within `limits`; the others keep their state.
    """

    def __init__(
        self,
        runner: StepRunner,
        make_plan: Callable[[GenerationParams], Plan],
        latent_scale: int,
        limits: Limits,
        curve: CostCurve = UNKNOWN,
    ):
        self._runner = runner
        self._make_plan = make_plan
        self._latent_scale = latent_scale
        self.limits = limits
        self.curve = curve  # corrected by every tick
        self.peak_flops: float | None = None  # a second, of the device, if somebody measured it
        self._waiting: dict[str, QueuedSample] = {}
        self._queue = WaitingQueue[RunningSample | QueuedSample](curve.slowdown)  # the same
        self._running: dict[str, RunningSample] = {}
        self._deadlines: list[tuple[float, str]] = []  # a heap; some are of samples that have left
        self._lately: deque[SampleWorkload] = deque(maxlen=RECENT_ARRIVALS)
        self._left: list[SampleOutcome] = []
        self._members: batch.BatchLayout | None = None
        self._num_ticks = 0
        self._prepared: OrderedDict[tuple[str, float, str, int, tuple[int, int] | None], DevicePlan] = (
            OrderedDict()
        )
        self.last_tick: TickRecord | None = None

    @property
    def config(self) -> NetworkConfig:
        """Of the network."""
        config: NetworkConfig = self._runner.network.config
        return config

    @property
    def device(self) -> torch.device:
        return self._runner.device

    @property
    def dtype(self) -> torch.dtype:
        return self._runner.dtype

    @property
    def attention(self) -> str:
        """The back end of the network's attention."""
        return self._runner.network.attention_name

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def open_seconds(self) -> float:
        """Device-seconds spent on the samples that are here."""
        waiting = sum(sample.spent.device_seconds for sample in self._waiting.values())
        return waiting + sum(sample.spent.device_seconds for sample in self._running.values())

    @property
    def work_left(self) -> float:
        """Device-seconds that the samples that are here would still take, each alone."""
        waiting = sum(sample.workload.left[0] for sample in self._waiting.values())
        running = sum(sample.workload.left[sample.step_index] for sample in self._running.values())
        return self.curve.slowdown * (waiting + running)

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running or self._left)

    def add(
        self,
        request_id: str,
        params: GenerationParams,
        cond: TextStates,
        uncond: TextStates | None,
        arrived: float | None = None,
        deadline: float = math.inf,
    ) -> None:
        """Queue a sample that has waited since `arrived` and leaves at `deadline`, done or not.

        Both by `time.perf_counter`; without them it came now, and may take for ever.

        Raises `InvalidParams` if it cannot be drawn, `ValueError` if the id is already here.
        """
        if request_id in self._waiting or request_id in self._running:
            raise ValueError(f"request {request_id} is already in the engine")
        started = time.perf_counter()
        prepared, flops = self._prepare(params)
        times = (tick.t for tick in prepared.plan.ticks)
        guided = guides(times, params.guidance_scale, params.guidance_interval, params.guidance_stride)
        needs_cond, needs_uncond = (
            any(which) for which in zip(*(guide.rows for guide in guided), strict=True)
        )
        if needs_uncond and uncond is None:
            raise ValueError("a guided sample needs the states of its negative prompt")
        load = self._load(params, guided, cond, uncond, started if arrived is None else arrived, deadline)
        if (most := max(load.rows) * load.tokens) > self.limits.max_tokens:
            size, least = f"{params.width}x{params.height}", self.limits.max_tokens
            raise InvalidParams(
                "size", f"an image of {size} takes {most} tokens in a tick, and this engine at most {least}"
            )
        self._lately.append(load)
        waiting = QueuedSample(
            request_id=request_id,
            params=params,
            prepared=prepared,
            guides=guided,
            cond=cond if needs_cond else None,
            uncond=uncond if needs_uncond else None,
            workload=load,
            spent=UsageSoFar(flops=flops, device_seconds=time.perf_counter() - started),
        )
        self._waiting[request_id] = waiting
        self._queue.add(waiting)
        if deadline < math.inf:
            heapq.heappush(self._deadlines, (deadline, request_id))

    def abort(self, request_id: str) -> None:
        """Take a sample out now; its outcome comes out of the next `step`. Unknown or finished ids are ignored."""
        sample = self._waiting.get(request_id) or self._running.get(request_id)
        if sample is not None:
            self._leave(sample, FinishReason.ABORTED)

    def abort_all(self) -> None:
        """Abort every sample that is here; they are not taken for what comes as a rule either."""
        self._lately.clear()
        for request_id in (*self._waiting, *self._running):
            self.abort(request_id)

    def step(self) -> list[SampleOutcome]:
        """One tick of the samples that are chosen for it; returns those that left since the last call."""
        self._expire()
        self._run(self._choose())
        return self._settle()

    def forecast(self) -> dict[str, float]:
        """For every sample that is here, the seconds until it leaves, if others come as they did lately."""
        begun = list(self._running.values())
        seconds = finish_times(
            begun, self._queue, time.perf_counter(), self.limits, self.curve, list(self._lately)
        )
        return {sample.request_id: own for sample, own in zip((*begun, *self._queue), seconds, strict=True)}

    def _choose(self) -> list[RunningSample]:
        """The samples of the next tick, in order of arrival; those who have waited until now are begun."""
        self._num_ticks += 1
        curve = self.curve.uncapped() if self._is_exploring else self.curve
        chosen = select_next_batch(
            list(self._running.values()), self._queue, time.perf_counter(), self.limits, curve
        )
        return in_arrival_order(
            [sample for sample in map(self._begun, chosen) if sample is not None], self._running.values()
        )

    @property
    def _is_exploring(self) -> bool:
        """Whether this tick may be larger than the best."""
        return self._num_ticks % EXPLORE == 0

    def _begun(self, sample: RunningSample | QueuedSample) -> RunningSample | None:
        """A sample on the device; None if it cannot begin, and has left."""
        if isinstance(sample, RunningSample):
            return sample
        try:
            begun = self._begin(sample)
        except Exception as error:  # this sample's fault, not its neighbours'
            logger.exception("a sample could not begin")
            self._leave(sample, FinishReason.FAILED, f"the sample could not begin: {error}")
            return None
        self._stop_waiting(sample)
        self._running[sample.request_id] = begun
        return begun

    def _begin(self, waiting: QueuedSample) -> RunningSample:
        """Put a sample on the device, with what the network makes of its texts; it pays for that itself."""
        started = time.perf_counter()
        params, prepared = waiting.params, waiting.prepared
        shape = self._runner.latent_shape(
            params.height // self._latent_scale, params.width // self._latent_scale
        )
        cond, uncond = (
            None if text is None else self._row(text, prepared, waiting.spent)
            for text in (waiting.cond, waiting.uncond)
        )
        sample = RunningSample(
            request_id=waiting.request_id,
            params=params,
            plan=prepared.plan,
            updates=prepared.updates,
            guides=waiting.guides,
            cond=cond,
            uncond=uncond,
            workload=waiting.workload,
            queue_seconds=started - waiting.workload.arrived,
            state=start_state(params, prepared.plan, shape, self._runner.device),
            spent=waiting.spent,
        )
        sample.spent.device_seconds += time.perf_counter() - started
        return sample

    @torch.inference_mode()
    def _run(self, chosen: Sequence[RunningSample]) -> None:
        samples = batch.by_shape(chosen)
        if not samples:
            self.last_tick = TickRecord(0, 0, 0.0, 0)
            return
        started = time.perf_counter()
        if self._members is None or not self._members.matches(samples):
            self._detach_all_but(samples)
            self._members = batch.make_layout(samples, self._runner.network)
        members = self._members
        gathered = [batch.gather(group) for group in members.groups]
        for group, own, out in zip(
            members.groups, gathered, self._runner.forward(members, gathered), strict=True
        ):
            batch.scatter(group, batch.update(own, batch.guided(group, out)))
        self._runner.wait()
        self.last_tick = self._bill(samples, time.perf_counter() - started)

    def _detach_all_but(self, samples: Sequence[RunningSample]) -> None:
        """Give those who are passed over their state to themselves: as a view it would keep the whole of their last batch in memory."""
        for sample in set(self._running.values()) - set(samples):
            if sample.state.untyped_storage().nbytes() > sample.state.nbytes:
                sample.state = sample.state.clone()

    def _bill(self, samples: Sequence[RunningSample], seconds: float) -> TickRecord:
        """Share the tick that was just done out over its samples by the operations of their rows."""
        done = [
            (sample, sample.workload.rows[sample.step_index - 1], sample.workload.work[sample.step_index - 1])
            for sample in samples
        ]
        flops = sum(work for _, _, work in done)
        expected = self.curve.seconds_for(flops)
        self.curve = (
            self.curve.updated_by_probe(flops, seconds)
            if self._is_exploring
            else self.curve.updated(flops, seconds)
        )
        for sample, rows, work in done:
            spent = sample.spent
            spent.ticks += 1
            spent.rows += rows
            spent.tokens += rows * sample.workload.tokens
            spent.flops += int(work)
            spent.device_seconds += seconds * work / flops
        tokens = sum(rows * sample.workload.tokens for sample, rows, _ in done)
        return TickRecord(sum(rows for _, rows, _ in done), tokens, seconds, int(flops), expected)

    def _expire(self) -> None:
        """Let those go whose deadline has come: nobody waits for them any more."""
        now = time.perf_counter()
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, request_id = heapq.heappop(self._deadlines)
            sample = self._waiting.get(request_id) or self._running.get(request_id)
            if sample is not None and sample.workload.deadline == deadline:
                self._leave(sample, FinishReason.EXPIRED, "its deadline came first")

    def _settle(self) -> list[SampleOutcome]:
        for sample in [sample for sample in self._running.values() if sample.is_done]:
            if bool(torch.isfinite(sample.x).all()):
                self._leave(sample, FinishReason.DONE)
            else:
                self._leave(sample, FinishReason.FAILED, "the sample diverged to values that are not finite")
        left, self._left = self._left, []
        return left

    def row_flops(self, width: int, height: int) -> int:
        """Of one row in one tick, for an image of `width` x `height` pixels without a text."""
        return forward_flops(self.config, height // self._latent_scale, width // self._latent_scale, 0)

    def _load(
        self,
        params: GenerationParams,
        guided: Sequence[Guide],
        cond: TextStates,
        uncond: TextStates | None,
        arrived: float,
        deadline: float,
    ) -> SampleWorkload:
        config = self.config
        h, w = params.height // self._latent_scale, params.width // self._latent_scale
        of_cond, of_uncond = (
            0 if text is None else forward_flops(config, h, w, bucket(text.mask)) for text in (cond, uncond)
        )
        return make_workload(
            rows=[sum(guide.rows) for guide in guided],
            work=[guide.rows[0] * of_cond + guide.rows[1] * of_uncond for guide in guided],
            tokens=(h // config.patch_size) * (w // config.patch_size),
            curve=self.curve,
            arrived=arrived,
            deadline=deadline,
        )

    def _row(self, text: TextStates, prepared: DevicePlan, spent: UsageSoFar) -> Row:
        """A text under a plan; whoever brings a text pays for it, whoever shares it later does not."""
        row, is_new_text, is_new_row = self._runner.row(text, prepared.times, prepared.key)
        spent.flops += is_new_text * text_flops(self.config, row.text_tokens)
        spent.flops += is_new_row * row_flops(self.config, row.text_tokens, prepared.plan.nfe)
        return row

    def _prepare(self, params: GenerationParams) -> tuple[DevicePlan, int]:
        """The plan and what it cost now: who brings a plan pays for its times, who shares it later does not."""
        name = params.solver if params.eta else canonical_name(params.solver)
        size = (params.height, params.width) if self._runner.network.config.is_sized else None
        key = (name, params.eta, params.timestep_spacing, params.num_steps, size)
        if key in self._prepared:
            self._prepared.move_to_end(key)
            return self._prepared[key], 0
        plan = self._make_plan(params)
        self._prepared[key] = DevicePlan(
            key, plan, self._runner.updates(plan), self._runner.times(plan, (params.height, params.width))
        )
        if len(self._prepared) > PLANS_KEPT:
            self._prepared.popitem(last=False)
        return self._prepared[key], times_flops(self._runner.network.config, plan.nfe)

    def _stop_waiting(self, sample: QueuedSample) -> None:
        del self._waiting[sample.request_id]
        self._queue.remove(sample)

    def _leave(
        self, sample: RunningSample | QueuedSample, reason: FinishReason, error: str | None = None
    ) -> None:
        if isinstance(sample, QueuedSample):
            self._stop_waiting(sample)
        elif self._running.pop(sample.request_id, None):
            self._members = None  # it would keep what has left
        queue_seconds = (
            time.perf_counter() - sample.workload.arrived
            if isinstance(sample, QueuedSample)
            else sample.queue_seconds
        )
        spent = sample.spent
        usage = DenoiseUsage(
            ticks=spent.ticks,
            nfe=spent.ticks,
            rows=spent.rows,
            tokens=spent.tokens,
            cost=StageCost(spent.device_seconds, spent.flops, queue_seconds),
            is_batch_invariant=self._runner.is_batch_invariant,
        )
        latents = None
        if isinstance(sample, RunningSample) and reason is FinishReason.DONE:
            latents = sample.x.to(
                "cpu", copy=True
            )  # the state is a view of its last batch, and would carry the neighbours along
        self._left.append(SampleOutcome(sample.request_id, reason, latents, usage, error))
