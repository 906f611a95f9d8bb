"""Head-of-line blocking: how much long requests delay a short one that arrives after them."""

import statistics
import time
from dataclasses import replace

from safelight.pipeline.benchmark.engine_under_test import EngineUnderTest

REPEATS = 5
SHORT_STEPS, LONG_STEPS = 8, 40
TICKS_BEFORE = 5  # ticks of the long requests before the short one arrives


def measure_head_of_line(subject: EngineUnderTest, num_long: int) -> float:
    """The latency of an 8-step request behind long ones, as a multiple of its latency among equals.

    Behind: it arrives five ticks after `num_long` requests of 40 steps. Among equals: it starts together with
    four other requests of 8 steps. The median over pairs of both.
    """
    ratios = []
    for _ in range(REPEATS):
        behind = _short_latency(subject, num_long, LONG_STEPS, TICKS_BEFORE)
        among_equals = _short_latency(subject, 4, SHORT_STEPS, 0)
        ratios.append(behind / among_equals)
    return statistics.median(ratios)


def _short_latency(subject: EngineUnderTest, num_others: int, num_steps: int, ticks_before: int) -> float:
    """Seconds of a short request that arrives `ticks_before` ticks after `num_others` of `num_steps`."""
    engine, params, texts = subject.make_engine(), subject.single_image(), subject.texts
    cond, uncond = texts[params.prompt], texts[""]
    for number in range(num_others):
        engine.add(str(number), replace(params, num_steps=num_steps, seed=number), cond, uncond)
    for _ in range(ticks_before):
        engine.step()
    started = time.perf_counter()
    engine.add("short", replace(params, num_steps=SHORT_STEPS, seed=9), cond, uncond)
    while "short" not in {outcome.request_id for outcome in engine.step()}:
        pass
    return time.perf_counter() - started
