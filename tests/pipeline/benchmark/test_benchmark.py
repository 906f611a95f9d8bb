"""The benchmark's parts: a fixed trace, replays that serve every request, and diffusers that draws alike."""

import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch

from safelight.pipeline.benchmark.diffusers_loop import DiffusersLoop, load_loop
from safelight.pipeline.benchmark.replay import diffusers_replay, engine_replay
from safelight.pipeline.benchmark.trace import GUIDANCE, PROMPTS, SOLVERS, STEPS, TraceArrival, make_trace
from safelight.pipeline.calibration.peak import gemm_peak
from safelight.pipeline.params import GenerationParams
from safelight.service import cli
from tests.pipeline.parts import alone, engine, model, params, states

pytestmark = pytest.mark.filterwarnings("ignore")  # deprecation warnings of diffusers
TEXTS = {prompt: states(prompt) for prompt in (*PROMPTS, "")}


def test_the_trace_does_not_change() -> None:
    trace = make_trace(200, [(128, 128), (96, 96)])
    requests = [
        (
            round(arrival.at, 6),
            arrival.params.num_steps,
            arrival.params.guidance_scale,
            arrival.params.solver,
            arrival.params.width,
            arrival.params.prompt,
        )
        for arrival in trace
    ]
    assert hashlib.sha256(json.dumps(requests).encode()).hexdigest()[:16] == "b0374a2ed5fb481b"
    assert trace[:50] == make_trace(50, [(128, 128), (96, 96)])
    assert {arrival.params.num_steps for arrival in trace} == {*STEPS}
    assert {arrival.params.guidance_scale for arrival in trace} == {*GUIDANCE}
    assert {arrival.params.solver for arrival in trace} == {*SOLVERS}
    assert trace[-1].at / 200 == pytest.approx(1.0, rel=0.25)


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_diffusers_draws_what_the_engine_draws(solver: str, guidance_scale: float) -> None:
    """Latents are close, not equal, because diffusers' time grids end elsewhere."""
    p = params(solver=solver, num_steps=40, guidance_scale=guidance_scale, prompt=PROMPTS[0])
    loop = load_loop(model(), torch.float32, torch.device("cpu"), 8, is_compiled=False)
    theirs, ours = loop.generate([p, params(num_steps=40, prompt=PROMPTS[1])], TEXTS)[0], alone(p)
    assert torch.nn.functional.cosine_similarity(theirs.flatten(), ours.flatten(), dim=0) > 0.99


class Recorder:
    """A stand-in for diffusers that only records its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def generate(self, batch: Sequence[GenerationParams], texts: object) -> None:
        self.batches.append([p.seed for p in batch])
        time.sleep(0.01)


def arrivals(*requests: tuple[float, dict[str, Any]]) -> list[TraceArrival]:
    """A trace from pairs of a time and the parameters that differ from the default."""
    return [
        TraceArrival(at, params(seed=seed, prompt=PROMPTS[0], **changes))
        for seed, (at, changes) in enumerate(requests)
    ]


def test_static_batches_hold_equal_requests_and_wait_until_they_are_full() -> None:
    loop = Recorder()
    trace = arrivals(
        (0.0, {}), (0.0, {"num_steps": 9}), (0.02, {}), (0.03, {"num_steps": 9}), (0.04, {}), (0.5, {})
    )
    replay = diffusers_replay(cast(DiffusersLoop, loop), TEXTS, largest_batch=2, max_wait_s=0.2)
    result = replay(trace, lambda done: None)
    assert loop.batches == [[0, 2], [1, 3], [4], [5]]
    assert min(result.latencies) > 0.0
    assert result.latencies[4] >= 0.19


def test_one_at_a_time_is_first_come_first_served() -> None:
    loop = Recorder()
    replay = diffusers_replay(cast(DiffusersLoop, loop), TEXTS, largest_batch=1, max_wait_s=0.0)
    replay(arrivals((0.0, {}), (0.0, {}), (0.001, {})), lambda done: None)
    assert loop.batches == [[0], [1], [2]]


def test_the_engine_serves_every_request() -> None:
    done: list[int] = []
    trace = arrivals((0.0, {}), (0.0, {"num_steps": 3}), (0.1, {"guidance_scale": 1.0}))
    result = engine_replay(engine, TEXTS)(trace, done.append)
    assert done == [1, 2, 3]
    assert len(result.latencies) == 3
    assert result.images_per_hour > 0


def test_the_peak_is_positive() -> None:
    assert gemm_peak(torch.device("cpu"), torch.float32) > 1e8


def test_the_command_prints_all_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(["bench", "--model", "tiny", "--requests", "3", "--rounds", "1", "--no-compile", "--json"])
        == 0
    )
    report = json.loads(capsys.readouterr().out)["figures"]
    assert {
        "gemm_peak_gflops", "mfu", "batch1", "mixed", "bookkeeping_share", "forecast_error", "head_of_line",
        "curve", "peak_memory_bytes", "model", "device", "dtype", "mfu_under_trace", "head_of_line_crowded",
        "fidelity",
    } <= report.keys()  # fmt: skip
    assert report["batch1"].keys() == {"ours_s", "diffusers_eager_s", "diffusers_compiled_s"}
    assert report["mixed"].keys() == {"ours", "serial_eager", "serial_compiled", "static_best"}
    assert report["mixed"]["serial_compiled"] is None
    assert 0.0 < report["bookkeeping_share"] < 1.0
    assert 0.0 <= report["forecast_error"] < 10.0
    assert 0.1 < report["head_of_line"] < 10.0
    assert 0.1 < report["head_of_line_crowded"] < 20.0
    assert 0.0 < report["mfu_under_trace"] < 1.0
    assert 0.0 < report["fidelity"]["float32_error"] < 1e-3
    assert report["fidelity"]["psnr_db"] > 20.0
    assert report["curve"].keys() == {"work", "seconds", "factor", "ticks_seen"}
    assert len(report["curve"]["work"]) == len(report["curve"]["seconds"]) > 1
    assert cli.main(["bench", "--model", "tiny", "--requests", "3", "--rounds", "1", "--no-compile"]) == 0
    text = capsys.readouterr().out
    assert "throughput, images/h" in text
    assert max(map(len, text.splitlines())) <= 110


def test_a_trace_of_one_request_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--model", "tiny", "--requests", "1"]) == 2
    assert "--requests must be at least 2" in capsys.readouterr().err
