"""The cost curve of this machine, from ticks of the engine that will serve."""

from itertools import accumulate, count, takewhile

from safelight.models.denoisers import example_text
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.params import GenerationParams, StageCost, TextReport
from safelight.pipeline.scheduling.cost_curve import CostCurve

SECONDS = 3.0  # of ticks, about: it is done at every start, because a curve of another day is one of another machine
TICKS = 3  # of a visit to a size; the first warms it up
VISITS = 6  # to each size, in turn, so that a bad moment of the machine does not fall on one size alone
LONGEST_VISIT = SECONDS / 2  # a size that would take longer is not tried, unless it is the second
LARGEST_ROW = 1e12  # operations: a processor takes seconds for a row of more, so its first image will tell


def measure_curve(engine: Engine, model: ModelInfo) -> CostCurve:
    """Least seconds of ticks of 1, 2, 4, ... unguided rows at the native size: two sizes, and as many more as there is time for.

    Of a network too large to be tried, what the engine assumes. `engine` must be empty, and is left so.
    """
    if engine.row_flops(*model.native_size) > LARGEST_ROW and engine.device.type == "cpu":
        return engine.curve
    points: dict[float, float] = {}
    sizes = list(takewhile(lambda size: size <= engine.limits.max_rows, (2**k for k in count())))
    spent, num_tried = 0.0, 0

    def visit(size: int) -> float:
        work, seconds = _visit(engine, model, size)
        points[work] = min(seconds, points.get(work, seconds))
        return TICKS * seconds

    try:
        for _ in range(VISITS):
            for size in sizes[:num_tried]:
                if spent < SECONDS:
                    spent += visit(size)
            while num_tried < len(sizes) and (
                num_tried < 2 or 2 * TICKS * max(points.values()) <= LONGEST_VISIT
            ):
                spent += visit(
                    sizes[num_tried]
                )  # though the time is spent: other stages start beside this one, and made it seem slow
                num_tried += 1
    finally:
        engine.abort_all()  # also where nobody is left: those who came are no company to expect
        while engine.has_work:
            engine.step()
    rising = sorted(points)
    return CostCurve(
        tuple(rising), tuple(accumulate((points[work] for work in rising), max))
    )  # noise must not make more work cost less


def _visit(engine: Engine, model: ModelInfo, size: int) -> tuple[float, float]:
    """Work and least seconds of a tick of `size` rows, which stay together until they are done."""
    width, height = model.native_size
    params = GenerationParams("", "", width, height, TICKS, 1.0, model.solver, seed=0)
    for number in range(size):
        engine.add(str(number), params, _text(engine), None)
    facts = []
    while engine.has_work:
        engine.step()
        assert engine.last_tick is not None
        facts.append(engine.last_tick)
    return facts[-1].flops, min(fact.seconds for fact in facts[1:TICKS])


def _text(engine: Engine) -> TextStates:
    states, mask, pooled = example_text(engine.config)
    return TextStates(states, mask, pooled, TextReport(0, False, ()), StageCost(0.0, 0))
