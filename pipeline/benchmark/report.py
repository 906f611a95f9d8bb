"""The whole benchmark in one run: what `safelight bench` measures.

Text is encoded before the clock starts, and latents are not decoded: only denoising is compared.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from safelight.models.checkpoints.json_files import read_json, spatial_compression
from safelight.pipeline.benchmark.alone import measure_alone, measure_decoding
from safelight.pipeline.benchmark.diffusers_loop import DiffusersLoop, load_loop
from safelight.pipeline.benchmark.engine_under_test import EngineUnderTest, prepare_engine
from safelight.pipeline.benchmark.fidelity import NUM_IMAGES, Fidelity, measure_fidelity
from safelight.pipeline.benchmark.full_ticks import measure_full_ticks
from safelight.pipeline.benchmark.head_of_line import measure_head_of_line
from safelight.pipeline.benchmark.machine import Machine, identify_machine, peak_memory_bytes
from safelight.pipeline.benchmark.trace_replay import TraceResult, compare_on_trace, overload_trace
from safelight.pipeline.benchmark.warm_up import warm_up
from safelight.pipeline.calibration.curve_json import curve_as_dict
from safelight.pipeline.calibration.peak import gemm_peak
from safelight.pipeline.calibration.progress import ProgressCallback, count_progress
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.engine.runner import StepRunner
from safelight.pipeline.scheduling.cost_curve import CostCurve


@dataclass(frozen=True, slots=True)
class BenchmarkOptions:
    """What to measure."""

    num_requests: int  # length of the trace
    rounds: int  # how often each way of serving replays it
    with_compiled: bool = True  # compare with diffusers under torch.compile too
    quantization: str = "none"  # of the engine's denoiser


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Figures of one run on one machine. Times are only comparable with each other."""

    machine: Machine
    model: str
    device: str
    dtype: str
    quantization: str
    threads: int
    gemm_peak_gflops: float  # of the best matrix product
    mfu: float  # of full ticks of equal samples
    mfu_under_trace: float  # of all ticks of the trace, many of which are not full
    batch1: Mapping[str, float | None]  # seconds of one image alone, by way of generating it
    decode_share: float  # seconds of decoding one image over those of denoising it alone
    mixed: Mapping[str, TraceResult | None]  # the trace, by way of serving it
    num_requests: int
    requests_per_second: float
    curve: CostCurve  # measured before the rest
    forecast_error: float  # median relative error of the latency forecast at arrival
    head_of_line: float  # latency of a short request behind 4 long ones over that among 4 short ones
    head_of_line_crowded: float  # the same behind 40, which are more than a tick holds
    fidelity: Fidelity
    bookkeeping_share: float  # of a full tick, outside the network's evaluation
    peak_memory_bytes: int

    def figures(self) -> dict[str, object]:
        """For JSON, without the machine, which a benchmark's record holds apart."""
        figures = asdict(self) | {"curve": curve_as_dict(self.curve)}
        del figures["machine"]
        return figures


def run_benchmark(model: ModelInfo, options: BenchmarkOptions, progress: ProgressCallback) -> Benchmark:
    """Measure everything, one after another, with a model of a family that diffusers' side can run."""
    subject = prepare_engine(model, options.quantization, progress)
    runner = subject.runner
    progress("matrix products")
    peak = gemm_peak(runner.device, runner.dtype)
    loops = _load_loops(subject, options.with_compiled)
    warm_up(loops, subject.single_image(), subject.texts, progress)
    batch1 = measure_alone(subject, loops, progress)
    decode_share = measure_decoding(subject) / (batch1["ours_s"] or 1.0)
    arrivals, rate = overload_trace(subject, options.num_requests, progress)
    comparison = compare_on_trace(subject, loops, arrivals, options.rounds, progress)
    progress("head-of-line blocking and full ticks")
    head_of_line, head_of_line_crowded = (measure_head_of_line(subject, count) for count in (4, 40))
    full_ticks = measure_full_ticks(subject, peak)
    on_done = count_progress(progress, "fidelity", NUM_IMAGES)
    fidelity = measure_fidelity(model, on_done, options.quantization)
    return Benchmark(
        machine=identify_machine(peak),
        model=model.id,
        device=_device_name(runner),
        dtype=str(runner.dtype).removeprefix("torch."),
        quantization=options.quantization,
        threads=torch.get_num_threads(),
        gemm_peak_gflops=peak / 1e9,
        mfu=full_ticks.mfu,
        mfu_under_trace=comparison.flops_per_second / peak,
        batch1=batch1,
        decode_share=decode_share,
        mixed=comparison.results,
        num_requests=options.num_requests,
        requests_per_second=rate,
        curve=subject.curve,
        forecast_error=comparison.forecast_error,
        head_of_line=head_of_line,
        head_of_line_crowded=head_of_line_crowded,
        fidelity=fidelity,
        bookkeeping_share=full_ticks.overhead_share,
        peak_memory_bytes=peak_memory_bytes(runner.device),
    )


def _load_loops(subject: EngineUnderTest, with_compiled: bool) -> dict[str, DiffusersLoop]:
    model, runner = subject.model, subject.runner
    scale = spatial_compression(read_json(model.path / "vae" / "config.json"))
    loops = {"eager": load_loop(model, runner.dtype, runner.device, scale, is_compiled=False)}
    if with_compiled:
        loops["compiled"] = load_loop(model, runner.dtype, runner.device, scale, is_compiled=True)
    return loops


def _device_name(runner: StepRunner) -> str:
    device = runner.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
