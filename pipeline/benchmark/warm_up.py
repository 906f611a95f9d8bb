"""Warms up diffusers before the clock runs, because a compiled network compiles again for new shapes."""

from collections.abc import Mapping
from dataclasses import replace

from safelight.pipeline.benchmark.diffusers_loop import DiffusersLoop
from safelight.pipeline.benchmark.replay import LARGEST_BATCH
from safelight.pipeline.benchmark.trace import SOLVERS
from safelight.pipeline.calibration.progress import ProgressCallback, count_progress
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.params import GenerationParams


def warm_up(
    loops: Mapping[str, DiffusersLoop],
    params: GenerationParams,
    texts: Mapping[str, TextStates],
    progress: ProgressCallback,
) -> None:
    """Generate with every batch size, text length and solver that the trace may bring.

    Solvers count because their schedulers return timesteps of different types.
    """
    shapes = [
        (batch_size, guidance_scale, solver)
        for batch_size in range(1, LARGEST_BATCH + 1)
        for guidance_scale in (1.0, params.guidance_scale)
        for solver in SOLVERS
    ]
    report = count_progress(progress, "warming up diffusers", len(shapes))
    for number, (batch_size, guidance_scale, solver) in enumerate(shapes):
        report(number)
        for loop in loops.values():
            for prompt in (min(texts, key=len), max(texts, key=len)):
                image = replace(
                    params, num_steps=2, guidance_scale=guidance_scale, prompt=prompt, solver=solver
                )
                loop.generate([image] * batch_size, texts)
