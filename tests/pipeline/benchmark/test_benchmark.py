"""The benchmark's parts: a trace that does not change, replays that lose nobody, and a diffusers that draws what we draw."""

import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from safelight.pipeline.benchmark.diffusers_loop import load_loop
from safelight.pipeline.benchmark.replay import by_diffusers, by_engine
from safelight.pipeline.benchmark.trace import GUIDANCE, PROMPTS, SOLVERS, STEPS, TraceArrival, make_trace
from safelight.pipeline.calibration.peak import gemm_peak
from safelight.pipeline.params import GenerationParams
from safelight.service import cli
from tests.pipeline.parts import alone, engine, model, params, states

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers talks of its own future
TEXTS = {prompt: states(prompt) for prompt in (*PROMPTS, "")}


def test_the_trace_is_the_one_that_was_committed() -> None:
    trace = make_trace(200, [(128, 128), (96, 96)])
    told = json.dumps(
        [
            (
                round(a.at, 6),
                a.params.num_steps,
                a.params.guidance_scale,
                a.params.solver,
                a.params.width,
                a.params.prompt,
            )
            for a in trace
        ]
    )
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == "b0374a2ed5fb481b"
    assert trace[:50] == make_trace(50, [(128, 128), (96, 96)])
    assert {a.params.num_steps for a in trace} == {*STEPS}
    assert {a.params.guidance_scale for a in trace} == {*GUIDANCE}
    assert {a.params.solver for a in trace} == {*SOLVERS}
    assert trace[-1].at / 200 == pytest.approx(1.0, rel=0.25)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_diffusers_draws_what_the_engine_draws(solver: str, guidance_scale: float) -> None:
    """Its grids end elsewhere: the images are near, not equal."""
    p = params(solver=solver, num_steps=40, guidance_scale=guidance_scale, prompt=PROMPTS[0])
    loop = load_loop(model(), torch.float32, torch.device("cpu"), 8, is_compiled=False)
    theirs, ours = loop.draw([p, params(num_steps=40, prompt=PROMPTS[1])], TEXTS)[0], alone(p)
    assert torch.nn.functional.cosine_similarity(theirs.flatten(), ours.flatten(), dim=0) > 0.99


class Recorder:
    """A diffusers loop that only notes its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def draw(self, batch: Sequence[GenerationParams], texts: object) -> None:
        self.batches.append([p.seed for p in batch])
        time.sleep(0.01)


def arrivals(*given: tuple[float, dict[str, Any]]) -> list[TraceArrival]:
    return [
        TraceArrival(at, params(seed=seed, prompt=PROMPTS[0], **changed))
        for seed, (at, changed) in enumerate(given)
    ]


def test_static_batches_hold_equal_requests_and_wait_for_them() -> None:
    loop = Recorder()
    trace = arrivals(
        (0.0, {}), (0.0, {"num_steps": 9}), (0.02, {}), (0.03, {"num_steps": 9}), (0.04, {}), (0.5, {})
    )
    replayed = by_diffusers(loop, TEXTS, largest_batch=2, patience_s=0.2)(trace, lambda done: None)  # type: ignore[arg-type]
    assert loop.batches == [[0, 2], [1, 3], [4], [5]]
    assert min(replayed.latencies) > 0.0
    assert replayed.latencies[4] >= 0.19


def test_one_at_a_time_is_first_come_first_served() -> None:
    loop = Recorder()
    by_diffusers(loop, TEXTS, largest_batch=1, patience_s=0.0)(
        arrivals((0.0, {}), (0.0, {}), (0.001, {})), lambda done: None
    )  # type: ignore[arg-type]
    assert loop.batches == [[0], [1], [2]]


def test_the_engine_serves_everyone_that_arrives() -> None:
    done: list[int] = []
    trace = arrivals((0.0, {}), (0.0, {"num_steps": 3}), (0.1, {"guidance_scale": 1.0}))
    replayed = by_engine(engine, TEXTS)(trace, done.append)
    assert done == [1, 2, 3]
    assert len(replayed.latencies) == 3
    assert replayed.images_per_hour > 0


def test_the_peak_is_more_than_nothing() -> None:
    assert gemm_peak(torch.device("cpu"), torch.float32) > 1e8


def test_the_command_tells_all_it_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["bench", "--model", "tiny", "--requests", "3", "--rounds", "1", "--no-compile", "--json"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert {
        "gemm_peak_gflops", "mfu", "batch1", "mixed", "bookkeeping_share", "forecast_error", "head_of_line", "curve",
        "peak_memory_bytes", "model", "device", "dtype", "mfu_under_trace", "head_of_line_crowded", "fidelity"
    } <= found.keys()  # fmt: skip
    assert found["batch1"].keys() == {"ours_s", "diffusers_eager_s", "diffusers_compiled_s"}
    assert found["mixed"].keys() == {"ours", "serial_eager", "serial_compiled", "static_best"}
    assert found["mixed"]["serial_compiled"] is None
    assert 0.0 < found["bookkeeping_share"] < 1.0
    assert 0.0 <= found["forecast_error"] < 10.0
    assert 0.1 < found["head_of_line"] < 10.0
    assert 0.1 < found["head_of_line_crowded"] < 20.0
    assert 0.0 < found["mfu_under_trace"] < 1.0
    assert 0.0 < found["fidelity"]["float32_error"] < 1e-3
    assert found["fidelity"]["psnr_db"] > 20.0
    assert len(found["curve"]["work"]) == len(found["curve"]["seconds"]) > 1
    assert cli.main(["bench", "--model", "tiny", "--requests", "3", "--rounds", "1", "--no-compile"]) == 0
    assert "an hour" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--model", "tiny", "--requests", "1"]) == 2
    assert "--requests must be at least 2" in capsys.readouterr().err
