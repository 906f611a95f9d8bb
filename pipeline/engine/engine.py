"""The engine: samples join, advance together tick by tick, and leave, each after its own last tick.

No asyncio, no Ray, no locks: one thread owns an engine.
"""

from __future__ import annotations

import heapq
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from operator import attrgetter

import torch
from torch import Tensor

from safelight.models.networks.interface import NetworkConfig
from safelight.pipeline.diffusion.solvers import Plan
from safelight.pipeline.engine import batch
from safelight.pipeline.engine.activation import charge, start_sample
from safelight.pipeline.engine.admission import Admission
from safelight.pipeline.engine.in_flight import TickInFlight, queue_tick
from safelight.pipeline.engine.metering import Metering, TickRecord, usage_of
from safelight.pipeline.engine.plan_cache import PlanCache
from safelight.pipeline.engine.previews import SamplePreview
from safelight.pipeline.engine.runner import StepRunner
from safelight.pipeline.engine.sample import QueuedSample, RunningSample
from safelight.pipeline.engine.source_latents import SourceLatents
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.engine.work_estimate import WorkEstimator
from safelight.pipeline.params import (
    BACKGROUND,
    NO_PREVIEWS,
    NOT_URGENT,
    ONLY_CALLER,
    DenoiseUsage,
    FinishReason,
    GenerationParams,
    PreviewRequest,
    Share,
    Urgency,
)
from safelight.pipeline.scheduling.batcher import Limits, in_arrival_order
from safelight.pipeline.scheduling.cost_curve import UNKNOWN, CostCurve
from safelight.pipeline.scheduling.forecast import RECENT_ARRIVALS, finish_times
from safelight.pipeline.scheduling.queue import WaitingQueue
from safelight.pipeline.scheduling.selection import select_next_batch
from safelight.pipeline.scheduling.workload import SampleWorkload

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SampleOutcome:
    """How a sample left: its latents (C, H, W) if it is done, the reason, and what it used in any case."""

    request_id: str
    reason: FinishReason
    latents: Tensor | None
    usage: DenoiseUsage
    error: str | None = None


class Engine:
    """Step-level batching of samples that differ in steps, solver, guidance, size and text.

    Each tick advances the samples that `select_next_batch` takes; the others keep their state.

    Args:
        runner: The network.
        make_plan: Plans a sample; may raise `InvalidParams`.
        latent_scale: Pixels on a side of one latent pixel.
        limits: The most that a tick may hold.
        curve: The cost of a tick at the start; every tick corrects it.
        peak_flops: Operations a second that the device can do, if that was measured.
    """

    def __init__(
        self,
        runner: StepRunner,
        make_plan: Callable[[GenerationParams], Plan],
        latent_scale: int,
        limits: Limits,
        curve: CostCurve = UNKNOWN,
        peak_flops: float | None = None,
    ):
        self._runner = runner
        self._make_plan = make_plan
        self.limits = limits
        self.peak_flops = peak_flops
        plans = PlanCache(runner, make_plan)
        self._admission = Admission(plans, runner.network.config, latent_scale, limits)
        self.estimator = WorkEstimator(make_plan, runner.network.config, latent_scale)
        self._metering = Metering(curve)
        self._queue = WaitingQueue[QueuedSample](curve.slowdown, key=attrgetter("request_id"))
        self._running: dict[str, RunningSample] = {}
        self._finishing: dict[str, RunningSample] = {}  # their last tick is in flight
        self._in_flight: TickInFlight | None = None  # only on a device that runs behind the host
        self._to_abort: list[str] = []  # by the next `step`
        self._deadlines: list[tuple[float, str]] = []  # a heap; entries of samples that left are skipped
        self._recent_arrivals: deque[SampleWorkload] = deque(maxlen=RECENT_ARRIVALS)
        self._layout: batch.BatchLayout | None = None
        self._outcomes: list[SampleOutcome] = []  # since the last `step`
        self._previews: list[SamplePreview] = []  # since the last `take_previews`

    def calibrated(
        self, curve: CostCurve, peak_flops: float | None = None, limits: Limits | None = None
    ) -> Engine:
        """A new, empty engine on the same network that starts with measured costs, and other `limits`."""
        scale = self._admission.latent_scale
        return Engine(self._runner, self._make_plan, scale, limits or self.limits, curve, peak_flops)

    @property
    def config(self) -> NetworkConfig:
        """The configuration of the network."""
        return self._admission.config

    @property
    def device(self) -> torch.device:
        return self._runner.device

    @property
    def dtype(self) -> torch.dtype:
        return self._runner.dtype

    @property
    def attention(self) -> str:
        """The name of the network's attention back end."""
        return self._runner.network.attention_name

    @property
    def curve(self) -> CostCurve:
        """The cost of a tick at present."""
        return self._metering.curve

    @property
    def last_tick(self) -> TickRecord | None:
        return self._metering.last_tick

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    @property
    def num_running(self) -> int:
        return len(self._running) + len(self._finishing)

    @property
    def open_seconds(self) -> float:
        """Device-seconds spent on the samples that have not left."""
        samples = (*self._queue.by_arrival(), *self._running.values(), *self._finishing.values())
        return sum(sample.device_seconds for sample in samples)

    @property
    def work_left(self) -> float:
        """Device-seconds that the samples that have not left would still take, each alone."""
        waiting = sum(sample.workload.seconds_left[0] for sample in self._queue.by_arrival())
        running = sum(sample.workload.seconds_left[sample.step_index] for sample in self._running.values())
        return self.curve.slowdown * (waiting + running)

    @property
    def progress(self) -> list[tuple[str, int]]:
        """The samples that have started, and how many ticks each has done."""
        return [(sample.request_id, sample.step_index) for sample in self._running.values()]

    @property
    def has_work(self) -> bool:
        return bool(self._queue or self._running or self._finishing or self._outcomes)

    def row_flops(self, width: int, height: int) -> int:
        """The operations of one row in one tick, for an image of `width` x `height` pixels without a text."""
        return self._admission.row_flops(width, height)

    def add(
        self,
        request_id: str,
        params: GenerationParams,
        cond: TextStates,
        uncond: TextStates | None,
        arrived: float | None = None,
        deadline: float = math.inf,
        source: SourceLatents | None = None,
        previews: PreviewRequest = NO_PREVIEWS,
        share: Share = ONLY_CALLER,
        urgency: Urgency = NOT_URGENT,
    ) -> None:
        """Queue a sample. Times are seconds by `time.perf_counter`.

        Args:
            request_id: A name that no other sample in the engine has.
            params: The image.
            cond: States of the prompt.
            uncond: States of the negative prompt; None if no tick is guided.
            arrived: When the request arrived, by default now.
            deadline: When the sample leaves, done or not.
            source: What an edit starts from.
            previews: Which of its previews `take_previews` should return.
            share: Whose it is.
            urgency: Its promise and level.

        Raises:
            InvalidParams: This engine cannot generate the image.
            ValueError: The id is in use, or `uncond` or `source` is missing or has the wrong shape.
        """
        if request_id in self._queue or request_id in self._running or request_id in self._finishing:
            raise ValueError(f"request {request_id} is already in the engine")
        self._check_source(params, source)
        arrived = time.perf_counter() if arrived is None else arrived
        start = self._runner.clock.mark()
        sample = self._admission.admit(
            request_id, params, cond, uncond, self.curve, arrived, deadline, urgency
        )
        self.estimator.observe(params, sum(sample.workload.work))
        sample.workload = replace(sample.workload, share=share)
        sample.source = source
        sample.previews = previews
        charge(sample, start, self._runner.clock)
        self._recent_arrivals.append(sample.workload)
        self._queue.add(sample)
        if deadline < math.inf:
            heapq.heappush(self._deadlines, (deadline, request_id))

    def _check_source(self, params: GenerationParams, source: SourceLatents | None) -> None:
        """Raise `ValueError` unless an edit, and only an edit, has a source of the shape of its latents."""
        shape = None if source is None else tuple(source.latents.shape)
        expected = None if params.edit is None else self._latent_shape(params)
        if shape != expected:
            raise ValueError(f"the source has latents of the shape {shape}, expected {expected}")

    def _latent_shape(self, params: GenerationParams) -> tuple[int, int, int]:
        return self._runner.latent_shape(*self._admission.latent_size(params.width, params.height))

    def abort(self, request_id: str) -> None:
        """Remove a sample; its outcome comes out of the next `step`. Unknown or finished ids are ignored."""
        if self._in_flight is None:
            self._remove(request_id, FinishReason.ABORTED)
        else:  # it may have a tick there, which `step` waits for
            self._to_abort.append(request_id)

    def abort_all(self) -> None:
        """Abort every sample, and forget all as arrivals that a forecast would extrapolate."""
        self._recent_arrivals.clear()
        for request_id in [sample.request_id for sample in self._queue.by_arrival()] + list(self._running):
            self.abort(request_id)

    def step(self) -> list[SampleOutcome]:
        """Run one tick; returns the samples that left since the last call.

        On a device that runs behind the host, the tick is only queued, and the one before it is waited for.
        """
        self._metering.record_idle_tick()  # until a tick is complete
        for request_id in self._to_abort:
            self._remove(request_id, FinishReason.ABORTED)
        self._to_abort.clear()
        self._expire()
        queued = self._queue_tick()
        self._complete_in_flight()
        self._in_flight = queued
        if not self._runner.clock.runs_ahead:
            self._complete_in_flight()
        if self._is_resting():
            self._metering.shares.rest()
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def take_previews(self) -> list[SamplePreview]:
        """The previews since the last call; some may be of samples that have left."""
        previews, self._previews = self._previews, []
        return previews

    def forecast(self) -> dict[str, float]:
        """Seconds until each sample leaves, by request id, if requests go on arriving as recently."""
        running = list(self._running.values())
        seconds = finish_times(
            running,
            self._queue,
            time.perf_counter(),
            self.limits,
            self.curve,
            list(self._recent_arrivals),
            self._metering.shares,
        )
        samples = (*running, *self._queue)
        return {sample.request_id: time_left for sample, time_left in zip(samples, seconds, strict=True)}

    def _is_resting(self) -> bool:
        """Whether nothing is left to be done but work in the background."""
        running = (*self._running.values(), *self._finishing.values())
        callers = {sample.workload.share.caller for sample in running} | self._queue.callers
        return callers <= {BACKGROUND.caller}

    def _expire(self) -> None:
        """Remove the samples whose deadline has passed."""
        now = time.perf_counter()
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, request_id = heapq.heappop(self._deadlines)
            sample = self._queue.get(request_id) or self._running.get(request_id)
            if sample is not None and sample.workload.deadline == deadline:
                self._remove(request_id, FinishReason.EXPIRED, "its deadline came first")

    def _select(self) -> list[RunningSample]:
        """The samples of the next tick in order of arrival; those that waited are activated."""
        selected = select_next_batch(
            list(self._running.values()),
            self._queue,
            time.perf_counter(),
            self.limits,
            self._metering.start_tick(),
            self._metering.shares,
        )
        request_ids = [sample.request_id for sample in selected]
        for request_id in request_ids:
            if (queued := self._queue.get(request_id)) is not None:
                self._activate(queued)
        running = [self._running[request_id] for request_id in request_ids if request_id in self._running]
        return in_arrival_order(running, self._running.values())

    def _activate(self, queued: QueuedSample) -> None:
        """Move a waiting sample to the running ones; it leaves as failed if that raises."""
        try:
            sample = self._start(queued)
        except Exception as error:  # this sample's fault, not that of its batch-mates
            logger.exception("a sample could not begin")
            self._remove(queued.request_id, FinishReason.FAILED, f"the sample could not begin: {error}")
        else:
            self._queue.remove(queued)
            self._running[queued.request_id] = sample

    def _start(self, queued: QueuedSample) -> RunningSample:
        """The sample on the device, with the network's rows of its texts; their cost is its own."""
        return start_sample(queued, self._runner, self._latent_shape(queued.params), time.perf_counter())

    def _queue_tick(self) -> TickInFlight | None:
        """Select the samples of the next tick and queue its work; None if none has any.

        A tick that does not fit into the device's memory is tried again with half of its samples.
        """
        while selected := self._select():
            try:
                tick = self._queue_work(selected)
            except torch.OutOfMemoryError:
                logger.warning("a tick of %d samples does not fit into memory", len(selected))
            else:
                self._metering.charge_tick(tick.work, self._running.values(), self._queue.shares)
                self._prepare_next(selected)
                return tick
            # Outside of `except`, where the error would keep the tensors of its frames.
            self._make_room(selected)
        return None

    @torch.inference_mode()
    def _queue_work(self, selected: Sequence[RunningSample]) -> TickInFlight:
        """Queue the work of the next tick of `selected`; until the update, it changes no sample."""
        samples, start = batch.by_shape(selected), self._runner.clock.mark()
        if self._layout is None or not self._layout.matches(samples):
            self._release_batch_views(samples)
            self._layout = batch.make_layout(samples, self._runner.network)
        return queue_tick(self._layout, self._runner, self._metering.work_of(samples), start)

    def _prepare_next(self, samples: Sequence[RunningSample]) -> None:
        """Set the samples apart that have no tick left, and draw the noise of the others' next tick."""
        for sample in samples:
            if sample.is_done:
                self._finishing[sample.request_id] = self._running.pop(sample.request_id)
                self._layout = None  # without the sample, the next batch has another
            elif self._runner.clock.runs_ahead:
                sample.draw_noise()

    def _make_room(self, samples: Sequence[RunningSample]) -> None:
        """After a tick of `samples` that did not fit: lower the limits, or give up the only one."""
        self._complete_in_flight()
        self._layout = None
        self._runner.release_memory()
        if len(samples) == 1:
            error = "the device has too little memory for an image of this size"
            self._remove(samples[0].request_id, FinishReason.TOO_LARGE, error)
            return
        rows = [sample.workload.rows[sample.step_index] for sample in samples]
        tokens = sum(count * sample.workload.tokens for count, sample in zip(rows, samples, strict=True))
        self.limits = Limits(max(2, sum(rows) // 2), max(1, tokens // 2))
        logger.warning("ticks have at most %d rows and %d tokens from now on", *astuple(self.limits))

    def _complete(self, tick: TickInFlight) -> None:
        """Wait for a tick, correct the cost curve by its seconds, and take its results."""
        self._metering.record_tick(tick.work, tick.wait())
        is_alone = self.num_running + len(self._queue) == 1
        self._previews += [estimate.preview(is_alone) for estimate in tick.estimates]
        for finished in tick.finished:
            sample = finished.sample
            del self._finishing[sample.request_id]
            if finished.is_sound:
                self._leave(sample, FinishReason.DONE, latents=finished.latents)
            else:
                error = "the sample diverged to values that are not finite"
                self._leave(sample, FinishReason.DIVERGED, error)

    def _complete_in_flight(self) -> None:
        tick, self._in_flight = self._in_flight, None
        if tick is not None:
            self._complete(tick)

    def _release_batch_views(self, selected: Sequence[RunningSample]) -> None:
        """Copy the states of samples that are passed over: a view keeps its whole batch in memory."""
        for sample in set(self._running.values()) - set(selected):
            if sample.state.untyped_storage().nbytes() > sample.state.nbytes:
                sample.state = sample.state.clone()

    def _remove(self, request_id: str, reason: FinishReason, error: str | None = None) -> None:
        """Take a sample out of the engine, if it is in it, and keep its outcome for the next `step`."""
        if (queued := self._queue.get(request_id)) is not None:
            self._queue.remove(queued)
            self._metering.settle(queued)
            usage = self._usage(queued, time.perf_counter() - queued.workload.arrived)
            self._outcomes.append(SampleOutcome(request_id, reason, None, usage, error))
        elif request_id in self._running:
            self._complete_in_flight()  # it may have a tick in it, which counts
            sample = self._running.pop(request_id)
            self._layout = None  # it refers to the sample
            self._leave(sample, reason, error)

    def _leave(
        self,
        sample: RunningSample,
        reason: FinishReason,
        error: str | None = None,
        latents: Tensor | None = None,
    ) -> None:
        """Keep the outcome of a sample that is not running any more for the next `step`."""
        self._metering.settle(sample)
        usage = self._usage(sample, sample.queue_seconds)
        self._outcomes.append(SampleOutcome(sample.request_id, reason, latents, usage, error))

    def _usage(self, sample: QueuedSample | RunningSample, queue_seconds: float) -> DenoiseUsage:
        return usage_of(sample, queue_seconds, self._runner.is_batch_invariant)
