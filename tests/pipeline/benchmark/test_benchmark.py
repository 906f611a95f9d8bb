"""The whole benchmark: a fixed trace, diffusers that draws what the engine draws, and the command."""

import hashlib
import json
from typing import Any

import pytest
import torch

from safelight.pipeline.benchmark import report as benchmark_report
from safelight.pipeline.benchmark.diffusers_loop import load_loop
from safelight.pipeline.benchmark.report import Benchmark
from safelight.pipeline.benchmark.trace import GUIDANCE, PROMPTS, SOLVERS, STEPS, make_trace
from safelight.service import cli
from tests.pipeline.parts import alone, model, params, states

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


def test_the_command_prints_all_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["bench", "--model", "tiny", "--requests", "3", "--rounds", "1", "--no-compile"]
    results: list[Benchmark] = []
    run = benchmark_report.run_benchmark

    def run_and_record(*args: Any) -> Benchmark:
        results.append(run(*args))
        return results[-1]

    monkeypatch.setattr(benchmark_report, "run_benchmark", run_and_record)
    assert cli.main([*command, "--json"]) == 0
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
    for figure in ("mfu", "mfu_under_trace", "head_of_line", "head_of_line_crowded", "gemm_peak_gflops"):
        assert report[figure] > 0.0, figure
    check_fidelity(report["fidelity"])
    assert report["curve"].keys() == {"work", "seconds", "factor", "ticks_seen"}
    assert len(report["curve"]["work"]) == len(report["curve"]["seconds"]) > 1
    # The text of the same run.
    monkeypatch.setattr(benchmark_report, "run_benchmark", lambda *args: results[-1])
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert "throughput, images/h" in text
    assert f"{100 * report['mfu']:.1f} %" in text
    assert f"{report['mixed']['ours']['images_per_hour']:.0f}" in text
    assert max(map(len, text.splitlines())) <= 110


def check_fidelity(fidelity: dict[str, float]) -> None:
    """Check the bars of docs/performance.md, which no speed of a machine changes."""
    assert 0.0 < fidelity["float32_error"] < 1e-3
    assert fidelity["psnr_db"] > min(30.0, fidelity["diffusers_psnr_db"] - 3.0)


def test_a_trace_of_one_request_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--model", "tiny", "--requests", "1"]) == 2
    assert "--requests must be at least 2" in capsys.readouterr().err
