"""Replays a trace of requests in real time, against the engine or against diffusers with static batching."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from safelight.pipeline.benchmark.diffusers_loop import DiffusersLoop
from safelight.pipeline.benchmark.trace import TraceArrival
from safelight.pipeline.diffusion.guidance import needs_uncond
from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.params import GenerationParams

LARGEST_BATCH = 8  # images; under guidance these are as many rows as the engine's limit
MAX_WAIT_S = 1.0  # how long a static batch waits until it is full


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """The outcome of a replay, in the order of the trace."""

    latencies: tuple[float, ...]  # seconds from arrival to the finished image
    seconds: float  # from the first arrival to the last image
    forecasts: tuple[float, ...] = ()  # of the latencies, each made when its request arrived
    flops_per_second: float | None = None  # over all ticks, in the seconds that they took

    @property
    def images_per_hour(self) -> float:
        return 3600 * len(self.latencies) / self.seconds

    @property
    def p50_s(self) -> float:
        return statistics.median(self.latencies)

    @property
    def p95_s(self) -> float:
        if len(self.latencies) == 1:
            return self.latencies[0]
        return statistics.quantiles(self.latencies, n=20)[-1]


class Replay(Protocol):
    """One way of serving `arrivals`, whose times are in seconds.

    `on_done` is called with the number of finished images.
    """

    def __call__(self, arrivals: Sequence[TraceArrival], on_done: Callable[[int], None]) -> ReplayResult: ...


def engine_replay(make_engine: Callable[[], Engine], texts: Mapping[str, TextStates]) -> Replay:
    """A replay by this engine: every request joins at the next tick after it arrives."""

    def replay(arrivals: Sequence[TraceArrival], on_done: Callable[[int], None]) -> ReplayResult:
        engine = make_engine()
        due = list(reversed(arrivals))
        done_at: dict[str, float] = {}
        forecasts: dict[str, float] = {}
        flops, seconds = 0, 0.0
        started = time.perf_counter()
        while due or engine.has_work:
            while due and due[-1].at <= (now := time.perf_counter() - started):
                at, params = due[-1].at, due.pop().params
                request_id = str(params.seed)
                engine.add(request_id, params, texts[params.prompt], _negative(params, texts))
                forecasts[request_id] = now - at + engine.forecast()[request_id]
            if not engine.has_work:
                _sleep_until(started + due[-1].at)
                continue
            for outcome in engine.step():
                done_at[outcome.request_id] = time.perf_counter() - started
                on_done(len(done_at))
            if tick := engine.last_tick:
                flops, seconds = flops + tick.flops, seconds + tick.seconds
        return replace(
            _result(arrivals, done_at),
            forecasts=tuple(forecasts[str(arrival.params.seed)] for arrival in arrivals),
            flops_per_second=flops / seconds,
        )

    return replay


def diffusers_replay(
    loop: DiffusersLoop, texts: Mapping[str, TextStates], largest_batch: int, max_wait_s: float
) -> Replay:
    """A replay by diffusers with static batching.

    A batch is the oldest waiting request with others that are equal in all but prompt and seed. If it is not
    full, it waits until its oldest request has waited `max_wait_s`.
    `largest_batch=1, max_wait_s=0` is diffusers with one request at a time.
    """

    def replay(arrivals: Sequence[TraceArrival], on_done: Callable[[int], None]) -> ReplayResult:
        due = list(reversed(arrivals))
        waiting: list[TraceArrival] = []
        done_at: dict[str, float] = {}
        started = time.perf_counter()
        while due or waiting:
            while due and due[-1].at <= time.perf_counter() - started:
                waiting.append(due.pop())
            if not waiting:
                _sleep_until(started + due[-1].at)
                continue
            key = _batch_key(waiting[0].params)
            batch = [arrival for arrival in waiting if _batch_key(arrival.params) == key][:largest_batch]
            ready_at = waiting[0].at + max_wait_s
            if len(batch) < largest_batch and due and time.perf_counter() - started < ready_at:
                _sleep_until(started + min(ready_at, due[-1].at))
                continue
            waiting = [arrival for arrival in waiting if arrival not in batch]
            loop.generate([arrival.params for arrival in batch], texts)
            done_at |= {str(arrival.params.seed): time.perf_counter() - started for arrival in batch}
            on_done(len(done_at))
        return _result(arrivals, done_at)

    return replay


def _negative(params: GenerationParams, texts: Mapping[str, TextStates]) -> TextStates | None:
    return texts[params.negative_prompt] if needs_uncond(params.guidance_scale) else None


def _batch_key(params: GenerationParams) -> tuple[object, ...]:
    """What must be equal within one batch of diffusers."""
    return params.solver, params.num_steps, params.guidance_scale, params.width, params.height


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.perf_counter()))


def _result(arrivals: Sequence[TraceArrival], done_at: Mapping[str, float]) -> ReplayResult:
    latencies = tuple(done_at[str(arrival.params.seed)] - arrival.at for arrival in arrivals)
    return ReplayResult(latencies, max(done_at.values()) - arrivals[0].at)
