"""The cost curve of this machine, measured by ticks of an engine on the network that will serve."""

from itertools import accumulate, count, takewhile

from safelight.models.denoisers import example_text
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.engine.metering import TickRecord
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.params import GenerationParams, StageCost, TextReport
from safelight.pipeline.scheduling.cost_curve import CostCurve

# About how long measuring takes. It is done at every start, because machines and their load differ.
SECONDS = 3.0
TICKS = 3  # of a visit to a size; the first warms it up
VISITS = 6  # to each size, in turn, so that a busy moment of the machine does not fall on one size alone
# A size that would take longer is not measured, unless it is one of the first two.
LONGEST_VISIT = SECONDS / 2
# Operations. A processor takes seconds for a larger row, so the first image corrects the curve instead.
LARGEST_ROW = 1e12


def measure_curve(engine: Engine, model: ModelInfo) -> CostCurve:
    """Measure ticks of 1, 2, 4, ... unguided rows at the native size: the shortest of each size counts.

    At least two sizes are measured, and more as SECONDS allow.
    On a processor a network with rows of more than LARGEST_ROW is not measured; the result is `engine.curve`.

    `engine` must be empty, and is empty again afterwards.
    """
    if engine.row_flops(*model.native_size) > LARGEST_ROW and engine.device.type == "cpu":
        return engine.curve
    points: dict[float, float] = {}  # shortest seconds of a tick, by its work
    sizes = list(takewhile(lambda size: size <= engine.limits.max_rows, (2**k for k in count())))
    total_seconds, num_tried = 0.0, 0

    def visit(size: int) -> float:
        work, seconds = _visit(engine, model, size)
        points[work] = min(seconds, points.get(work, seconds))
        return TICKS * seconds

    try:
        for _ in range(VISITS):
            for size in sizes[:num_tried]:
                if total_seconds < SECONDS:
                    total_seconds += visit(size)
            # New sizes are tried even when the time is up: other stages start at the same time and slow this.
            while num_tried < len(sizes) and (
                num_tried < 2 or 2 * TICKS * max(points.values()) <= LONGEST_VISIT
            ):
                total_seconds += visit(sizes[num_tried])
                num_tried += 1
    finally:
        engine.abort_all()
        while engine.has_work:
            engine.step()
    works = sorted(points)
    # Noise must not make more work cost less.
    return CostCurve(tuple(works), tuple(accumulate((points[work] for work in works), max)))


def _visit(engine: Engine, model: ModelInfo, size: int) -> tuple[float, float]:
    """The work of a tick of `size` rows, and the seconds of the shortest of a few."""
    ticks = _run_ticks(engine, model, size)
    return ticks[-1].flops, min(tick.seconds for tick in ticks[1:TICKS])


def run_rows(engine: Engine, model: ModelInfo, size: int) -> int:
    """Run a few ticks of `size` unguided rows of the native size; returns the tokens of the largest."""
    return max(tick.tokens for tick in _run_ticks(engine, model, size))


def _run_ticks(engine: Engine, model: ModelInfo, size: int) -> list[TickRecord]:
    """The ticks of `size` unguided images that are requested at once from an empty engine."""
    width, height = model.native_size
    params = GenerationParams("", "", width, height, TICKS, 1.0, model.solver, seed=0)
    for number in range(size):
        engine.add(str(number), params, _text(engine), None)
    ticks = []
    while engine.has_work:
        engine.step()
        # On a device that runs behind the host, the first call completes no tick.
        if engine.last_tick is not None and engine.last_tick.rows:
            ticks.append(engine.last_tick)
    return ticks


def _text(engine: Engine) -> TextStates:
    states, mask, pooled = example_text(engine.config)
    return TextStates(states, mask, pooled, TextReport(0, False, ()), StageCost(0.0, 0))
