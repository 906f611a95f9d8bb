"""One trace of requests replayed against one way of serving, on the clock: who waits, who runs, when each is done."""

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

Progress = Callable[[int], None]
LARGEST_BATCH = 8  # images: as many rows as the engine's limit, where they are guided
PATIENCE_S = 1.0  # how long a static batch waits for company


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of a trace: `latencies` (s) from arrival to done, and the time from the first arrival to the last image."""

    latencies: tuple[float, ...]
    seconds: float
    forecasts: tuple[float, ...] = ()  # of the latencies, made when each request came
    flops_per_second: float | None = None  # of all ticks, in the seconds that they took

    @property
    def images_per_hour(self) -> float:
        return 3600 * len(self.latencies) / self.seconds

    @property
    def p50_s(self) -> float:
        return statistics.median(self.latencies)

    @property
    def p95_s(self) -> float:
        return (
            statistics.quantiles(self.latencies, n=20)[-1] if len(self.latencies) > 1 else self.latencies[0]
        )


class Replay(Protocol):
    """Serve `arrivals`, whose times are in seconds; the progress is how many images are done."""

    def __call__(self, arrivals: Sequence[TraceArrival], progress: Progress) -> Replayed: ...


def by_engine(make_engine: Callable[[], Engine], texts: Mapping[str, TextStates]) -> Replay:
    """This engine: every request joins at the next tick after it arrives."""

    def replay(arrivals: Sequence[TraceArrival], progress: Progress) -> Replayed:
        engine = make_engine()
        due, done, told = list(reversed(arrivals)), dict[str, float](), dict[str, float]()
        flops, seconds = 0, 0.0
        started = time.perf_counter()
        while due or engine.has_work:
            while due and due[-1].at <= (now := time.perf_counter() - started):
                at, params = due[-1].at, due.pop().params
                engine.add(str(params.seed), params, texts[params.prompt], _negative(params, texts))
                told[str(params.seed)] = now - at + engine.forecast()[str(params.seed)]
            if not engine.has_work:
                _sleep_until(started + due[-1].at)
                continue
            for outcome in engine.step():
                done[outcome.request_id] = time.perf_counter() - started
                progress(len(done))
            if tick := engine.last_tick:
                flops, seconds = flops + tick.flops, seconds + tick.seconds
        forecasts = tuple(told[str(each.params.seed)] for each in arrivals)
        return replace(_replayed(arrivals, done), forecasts=forecasts, flops_per_second=flops / seconds)

    return replay


def by_diffusers(
    loop: DiffusersLoop, texts: Mapping[str, TextStates], largest_batch: int, patience_s: float
) -> Replay:
    """diffusers with static batching: the oldest request, with those that wait and are equal in all but prompt and seed.

    A batch that is not full waits until its oldest has waited `patience_s`. A batch of one, without patience, is diffusers one
    request at a time.
    """

    def replay(arrivals: Sequence[TraceArrival], progress: Progress) -> Replayed:
        due, waiting, done = list(reversed(arrivals)), list[TraceArrival](), dict[str, float]()
        started = time.perf_counter()
        while due or waiting:
            while due and due[-1].at <= time.perf_counter() - started:
                waiting.append(due.pop())
            if not waiting:
                _sleep_until(started + due[-1].at)
                continue
            batch = [each for each in waiting if _kind(each.params) == _kind(waiting[0].params)][
                :largest_batch
            ]
            ready_at = waiting[0].at + patience_s
            if len(batch) < largest_batch and due and time.perf_counter() - started < ready_at:
                _sleep_until(started + min(ready_at, due[-1].at))
                continue
            waiting = [each for each in waiting if each not in batch]
            loop.draw([each.params for each in batch], dict(texts))
            done |= {str(each.params.seed): time.perf_counter() - started for each in batch}
            progress(len(done))
        return _replayed(arrivals, done)

    return replay


def _negative(params: GenerationParams, texts: Mapping[str, TextStates]) -> TextStates | None:
    return texts[params.negative_prompt] if needs_uncond(params.guidance_scale) else None


def _kind(params: GenerationParams) -> tuple[object, ...]:
    return params.solver, params.num_steps, params.guidance_scale, params.width, params.height


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.perf_counter()))


def _replayed(arrivals: Sequence[TraceArrival], done: Mapping[str, float]) -> Replayed:
    latencies = tuple(done[str(each.params.seed)] - each.at for each in arrivals)
    return Replayed(latencies, max(done.values()) - arrivals[0].at)
