"""The engine that the benchmark measures, and the request of its single image."""

from collections.abc import Mapping
from dataclasses import dataclass

from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_runner, engine_on
from safelight.pipeline.benchmark.trace import PROMPTS
from safelight.pipeline.calibration.cost_curve import measure_curve
from safelight.pipeline.calibration.progress import ProgressCallback
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.engine.runner import StepRunner
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.params import GenerationParams
from safelight.pipeline.scheduling.cost_curve import CostCurve


@dataclass(frozen=True, slots=True)
class EngineUnderTest:
    """What all measurements share: each makes a new engine with the same network and cost curve."""

    model: ModelInfo
    runner: StepRunner
    texts: Mapping[str, TextStates]  # by prompt, the empty one included
    curve: CostCurve  # measured before anything else

    def make_engine(self) -> Engine:
        return engine_on(self.runner, self.model).calibrated(self.curve)

    def single_image(self) -> GenerationParams:
        """The image that is measured alone: native size, 20 steps under guidance."""
        width, height = self.model.native_size
        return GenerationParams(PROMPTS[0], "", width, height, 20, 4.0, "dpmpp_2m", 1)


def prepare_engine(model: ModelInfo, quantization: str, progress: ProgressCallback) -> EngineUnderTest:
    """Load the network, encode the trace's prompts, and measure the cost curve."""
    runner, encoder = build_runner(model, quantization=quantization), build_text_encoder(model)
    texts = {prompt: encoder.encode([prompt])[0] for prompt in (*PROMPTS, "")}
    progress("cost curve")
    return EngineUnderTest(model, runner, texts, measure_curve(engine_on(runner, model), model))
