"""The latency of one image with nothing else running, by this engine and by diffusers, and its decoding."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.benchmark.diffusers_loop import DiffusersLoop
from safelight.pipeline.benchmark.engine_under_test import EngineUnderTest
from safelight.pipeline.calibration.progress import ProgressCallback, count_progress
from safelight.pipeline.engine.engine import Engine, SampleOutcome

REPEATS = 5


def measure_alone(
    subject: EngineUnderTest, loops: Mapping[str, DiffusersLoop], progress: ProgressCallback
) -> dict[str, float | None]:
    """Median seconds of one image, measured in turns.

    Keys are `ours_s`, and `diffusers_NAME_s` for each of `loops`; `diffusers_compiled_s` is None without it.
    """
    engine, params, texts = subject.make_engine(), subject.single_image(), subject.texts

    def generate_with_engine() -> None:
        engine.add("only", params, texts[params.prompt], texts[""])
        while engine.has_work:
            engine.step()

    ways: dict[str, Callable[[], object]] = {"ours_s": generate_with_engine}
    ways |= {f"diffusers_{name}_s": partial(loop.generate, [params], texts) for name, loop in loops.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    report = count_progress(progress, "one image alone", REPEATS + 1)
    for repeat in range(-1, REPEATS):  # the first one warms up
        report(repeat + 1)
        for name, generate in ways.items():
            started = time.perf_counter()
            generate()
            times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}
    return {"diffusers_compiled_s": None} | medians


def measure_decoding(subject: EngineUnderTest) -> float:
    """Median seconds of decoding the image that `measure_alone` denoises."""
    engine, params, texts = subject.make_engine(), subject.single_image(), subject.texts
    engine.add("only", params, texts[params.prompt], texts[""])
    latents = [outcome.latents for outcome in _outcomes(engine) if outcome.latents is not None]
    decoder = build_decoder(subject.model)
    times = []
    for _ in range(REPEATS + 1):  # the first one warms up
        started = time.perf_counter()
        decoder.decode(latents)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _outcomes(engine: Engine) -> Iterator[SampleOutcome]:
    while engine.has_work:
        yield from engine.step()
