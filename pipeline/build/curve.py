"""The cost curve of this machine, from ticks of the engine that will serve."""

import statistics
from itertools import accumulate, count

from models.networks import example_text
from pipeline.curve import CostCurve
from pipeline.encoder import TextStates
from pipeline.engine import Engine
from pipeline.params import GenerationParams, ModelInfo, StageCost, TextReport

SECONDS = 3.0  # for all of it: it is done at every start, because a curve of another day is one of another machine
TICKS = 5  # a size, of which the first warms it up
LARGEST_ROW = 2e12  # operations: a processor takes half a minute for a row of more, so its first picture will tell


def measure_curve(engine: Engine, model: ModelInfo) -> CostCurve:
    """Seconds of ticks of 1, 2, 4, ... unguided rows at the native size, as many as there is time for.

    Of a network too large to be tried, what the engine assumes. `engine` must be empty, and is left so.
    """
    if engine.row_flops(*model.native_size) > LARGEST_ROW and engine.device.type == "cpu":
        return engine.curve
    width, height = model.native_size
    params = GenerationParams("", "", width, height, TICKS * 8, 1.0, model.solver, seed=0)
    text = _text(engine)
    names = map(str, count())
    points: dict[float, float] = {}
    spent, rows = 0.0, 1
    try:
        while rows <= engine.limits.max_rows:
            for _ in range(rows - engine.num_waiting - engine.num_running):
                engine.add(next(names), params, text, None)
            work, seconds = _tick(engine)
            points[work] = seconds
            spent += TICKS * seconds
            rows *= 2
            if spent + 2 * TICKS * seconds > SECONDS:
                break
    finally:
        while engine.has_work:
            engine.abort_all()
            engine.step()
    rising = sorted(points)
    return CostCurve(tuple(rising), tuple(accumulate((points[work] for work in rising), max)))  # noise must not make more work cost less


def _tick(engine: Engine) -> tuple[float, float]:
    """Work and seconds of the engine's next ticks, the first left out; a sample joins in it."""
    facts = []
    for _ in range(TICKS):
        engine.step()
        assert engine.last_tick is not None
        facts.append(engine.last_tick)
    return facts[-1].flops, statistics.median(fact.seconds for fact in facts[1:])


def _text(engine: Engine) -> TextStates:
    states, mask, pooled = example_text(engine.config)
    return TextStates(states, mask, pooled, TextReport(0, False, ()), StageCost(0.0, 0))
