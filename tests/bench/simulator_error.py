"""The simulator's error against a live service: `python -m tests.bench.simulator_error [--json]`.

Takes about four minutes. A service is started and sent three profiles of load over HTTP. The very arrivals of
each are then simulated, with the costs that the service had during the profile: its cost curve, the ratios of
its ticks to that curve, the time between them, and the busy seconds of its other stages. What the gateway and
the calls between stages take is measured on lone images before each profile, and scaled by how much slower
a text is encoded and an image decoded in the profile than alone. The load average stands beside each row: on
a shared machine the error is that of the simulator and of the disturbances together.

The exit status is 1 if an error is larger than its bar.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from loadtests.core_seconds import CoreClock
from loadtests.replay import replay
from loadtests.results import Phase, percentile
from loadtests.service import Service, service
from loadtests.traces import Body, ScheduledRequest, poisson
from safelight.pipeline.benchmark.bars import SIMULATOR_BARS
from safelight.pipeline.benchmark.machine import identify_machine
from safelight.pipeline.benchmark.record import benchmark_record
from safelight.pipeline.capacity.image_cost import ImageSpec, image_cost
from safelight.pipeline.capacity.model_profiles import model_profile
from safelight.pipeline.capacity.predict import HOUR
from safelight.pipeline.capacity.service_simulation import (
    ServiceCosts,
    simulate_service,
    with_ratios_of_mean,
)
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve
from tests.bench.verdicts import print_verdicts

NUM_LONE, NUM_AT_ONCE = 8, 120
LOAD = 0.6  # of the throughput that the first profile had
PEAK_SECONDS, PEAK_PERIOD, PEAK_LOAD, CALM_LOAD = 5.0, 20.0, 1.6, 0.3
REPORT_SECONDS = 2.5  # until the ledger has the reports of all stages
SEED = 77
RATIO = "safelight_tick_forecast_ratio"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One profile: what the service did and what the simulator says."""

    profile: str
    requests: int
    throughput: float  # images an hour, measured
    simulated_throughput: float
    p50: float
    simulated_p50: float
    p95: float
    simulated_p95: float
    load_average: float  # of the machine over a minute, at the end of the profile
    others: float  # share of the cores that processes outside of the service and this command had

    @property
    def throughput_error(self) -> float:
        return self.simulated_throughput / self.throughput - 1.0

    @property
    def p95_error(self) -> float:
        return self.simulated_p95 / self.p95 - 1.0


@dataclass(frozen=True, slots=True)
class Counters:
    """What the service's metrics had counted at one moment."""

    busy: dict[str, float]  # seconds by stage
    ticks: float
    tick_seconds: float
    ratio_sum: float
    ratio_buckets: tuple[tuple[float, float], ...]  # upper bound and cumulative count


def main() -> int:
    """Print the errors, with `--json` as a record for docs/data; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="emoji-128")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each profile but the first")
    parser.add_argument("--json", action="store_true", help="the record on stdout, for docs/data")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        service(args.model, Path(folder) / "service.log") as running,
    ):
        comparisons = compare_profiles(running, find_model(args.model), args.seconds)
    print_table(comparisons)
    figures = {
        "model": args.model,
        "comparisons": [
            asdict(row) | {"throughput_error": row.throughput_error, "p95_error": row.p95_error}
            for row in comparisons
        ],
    }
    machine = identify_machine()
    if args.json:
        command = f"python -m tests.bench.simulator_error --model {args.model} --seconds {args.seconds:g}"
        print(json.dumps(benchmark_record(machine, command, figures), indent=1))
    return print_verdicts(SIMULATOR_BARS, figures, machine)


def compare_profiles(running: Service, model: ModelInfo, seconds: float) -> list[Comparison]:
    """All three profiles; the rates of the last two are parts of the throughput of the first."""
    profile = LiveProfile(running, model)
    profile.measure("warm-up", profile.at_once(NUM_AT_ONCE // 2, SEED - 1))
    at_once = profile.measure("alike, at once", profile.at_once(NUM_AT_ONCE, SEED))
    mixed = profile.measure("mixed, at once", profile.mixed_at_once(NUM_AT_ONCE, SEED + 1))
    rate = mixed.throughput / HOUR
    at_random = profile.mixed(LOAD * rate, seconds, SEED + 2)
    peaks = [
        replace(request, at=request.at + start)
        for start in range(0, round(seconds), round(PEAK_PERIOD))
        for load, offset, length in (
            (PEAK_LOAD, 0.0, PEAK_SECONDS),
            (CALM_LOAD, PEAK_SECONDS, PEAK_PERIOD - PEAK_SECONDS),
        )
        for request in shifted(profile.mixed(load * rate, length, SEED + 3 + start), offset)
    ]
    return [
        at_once,
        mixed,
        profile.measure("mixed, at random", at_random),
        profile.measure("mixed, in peaks", peaks),
    ]


def shifted(schedule: Sequence[ScheduledRequest], seconds: float) -> list[ScheduledRequest]:
    """The same requests, later."""
    return [replace(request, at=request.at + seconds) for request in schedule]


class LiveProfile:
    """Profiles of load on one service, each measured and simulated."""

    def __init__(self, running: Service, model: ModelInfo):
        self._url = running.url
        self._pid = running.pid or os.getpid()
        self._model = model
        self._profile = model_profile(model)

    def measure(self, name: str, schedule: Sequence[ScheduledRequest]) -> Comparison:
        """Send a schedule, and simulate its arrivals with the costs that the service had meanwhile."""
        lone = self._lone_seconds()
        before, clock, started = self._counters(), CoreClock(self._pid), time.perf_counter()
        idle_before = other_seconds()
        results, curves = asyncio.run(self._replay(schedule))
        wall = time.perf_counter() - started
        load_average = os.getloadavg()[0]
        service_seconds = sum(clock.read().by_name.values())
        others = (other_seconds() - idle_before - service_seconds) / (wall * (os.cpu_count() or 1))
        phase = Phase(name, 0.0, tuple(results))
        if phase.faults:
            raise SystemExit(f"{name}: {dict(phase.faults)}; nothing can be compared")
        time.sleep(REPORT_SECONDS)
        costs = self._costs(before, self._counters(), curves, len(schedule), lone)
        sys.stderr.write(f"{name}: {costs}\n")
        images = sorted(
            ((result.sent, image_cost(self._profile, image_spec(request.body))), result.due)
            for result, request in zip(results, schedule, strict=True)
        )
        answers = simulate_service([image for image, _ in images], costs)
        latencies = [answer.done - due for answer, (_, due) in zip(answers, images, strict=True)]
        simulated_seconds = max(answer.done for answer in answers) - schedule[0].at
        return Comparison(
            profile=name,
            requests=len(schedule),
            throughput=phase.images_per_hour,
            simulated_throughput=HOUR * len(answers) / simulated_seconds,
            p50=phase.percentile(50),
            simulated_p50=percentile(latencies, 50),
            p95=phase.percentile(95),
            simulated_p95=percentile(latencies, 95),
            load_average=load_average,
            others=others,
        )

    def at_once(self, count: int, seed: int) -> list[ScheduledRequest]:
        """Equal images at the same time, each with its own prompt and noise."""
        width, height = self._model.native_size
        body = {
            "size": f"{width}x{height}", "num_inference_steps": self._model.num_steps,
            "guidance_scale": self._model.guidance_scale, "solver": self._model.solver,
        }  # fmt: skip
        return [own_prompt(ScheduledRequest(0.0, body), seed, number) for number in range(count)]

    def mixed_at_once(self, count: int, seed: int) -> list[ScheduledRequest]:
        """Images of the load tests' mix at the same time."""
        return [replace(request, at=0.0) for request in self.mixed(4.0, count, seed)[:count]]

    def mixed(self, rate: float, seconds: float, seed: int) -> list[ScheduledRequest]:
        """Images of the load tests' mix at random, `rate` a second."""
        sizes = [f"{width}x{height}" for width, height in self._model.sizes]
        requests = poisson(rate, seconds, sizes, seed)
        return [own_prompt(request, seed, number) for number, request in enumerate(requests)]

    def _lone_seconds(self) -> tuple[float, float]:
        """Of lone images: the median latency less their device-seconds, and the mean seconds between."""
        schedule = self.at_once(NUM_LONE, SEED - 9)
        rests, other_stages = [], []
        with httpx2.Client(base_url=self._url, timeout=60.0) as client:
            for number, request in enumerate(schedule):
                body = own_prompt(request, time.monotonic_ns(), number).body
                started = time.perf_counter()
                answer = client.post("/v1/images/generations", json=body)
                latency = time.perf_counter() - started
                seconds = answer.raise_for_status().json()["usage"]["safelight"]["device_seconds"]
                rests.append(latency - sum(seconds.values()))
                other_stages.append(seconds["encode"] + seconds["decode"])
        return statistics.median(rests), statistics.median(other_stages)

    def _costs(
        self,
        before: Counters,
        after: Counters,
        curves: Sequence[CostCurve],
        images: int,
        lone: tuple[float, float],
    ) -> ServiceCosts:
        """What the service's parts took between two readings of its counters."""
        ticks = after.ticks - before.ticks
        tick_seconds = after.tick_seconds - before.tick_seconds
        busy = {stage: after.busy[stage] - before.busy[stage] for stage in after.busy}
        mean_ratio = (after.ratio_sum - before.ratio_sum) / ticks
        curve = sorted(curves, key=lambda curve: curve.seconds_for(curve.work[-1]))[len(curves) // 2]
        settings = httpx2.get(f"{self._url}/v1/curve").json()
        max_rows = settings["max_rows"]
        native = [side // self._profile.scale // self._profile.patch for side in self._model.native_size]
        tokens = settings["max_tokens"] or max_rows * native[0] * native[1]
        encode, decode = busy["encode"] / images, busy["decode"] / images
        rest, lone_stages = lone
        return ServiceCosts(
            curve=curve,
            limits=Limits(max_rows, tokens),
            tick_ratios=with_ratios_of_mean(ratios_between(before, after), mean_ratio),
            tick_overhead=max(0.0, busy["denoise"] - tick_seconds) / ticks,
            encode=encode,
            decode=decode,
            transfer=rest * max(1.0, (encode + decode) / lone_stages),
        )

    async def _replay(self, schedule: Sequence[ScheduledRequest]) -> tuple[list[Any], list[CostCurve]]:
        """Results, and the denoiser's cost curve twice a second meanwhile."""
        curves = []
        replaying = asyncio.ensure_future(replay(self._url, schedule))
        async with httpx2.AsyncClient(base_url=self._url, timeout=30.0) as client:
            while not replaying.done():
                curve = (await client.get("/v1/curve")).raise_for_status().json()["denoise"]
                curves.append(CostCurve(tuple(curve["work_flops"]), tuple(curve["seconds"]), curve["factor"]))
                await asyncio.sleep(0.5)
        return await replaying, curves

    def _counters(self) -> Counters:
        busy: dict[str, float] = {}
        values: dict[str, float] = {}
        buckets = []
        for family in text_string_to_metric_families(httpx2.get(f"{self._url}/metrics").text):
            for sample in family.samples:
                values[sample.name] = sample.value
                if sample.name == "safelight_stage_busy_seconds_total":
                    busy[sample.labels["stage"]] = busy.get(sample.labels["stage"], 0.0) + sample.value
                elif sample.name == f"{RATIO}_bucket":
                    buckets.append((float(sample.labels["le"]), sample.value))
        return Counters(
            busy,
            values[f"{RATIO}_count"],
            values["safelight_tick_duration_seconds_sum"],
            values[f"{RATIO}_sum"],
            tuple(sorted(buckets)),
        )


def own_prompt(request: ScheduledRequest, seed: int, number: int) -> ScheduledRequest:
    """The request with a prompt and noise of its own, which no cache has."""
    prompt = f"{request.body.get('prompt', 'a red apple')} {seed} {number}"
    return replace(request, body=request.body | {"prompt": prompt, "seed": number})


def image_spec(body: Body) -> ImageSpec:
    """The image that a request asks for."""
    width, height = map(int, body["size"].split("x"))
    return ImageSpec((width, height), body["num_inference_steps"], body["guidance_scale"], body["solver"])


def ratios_between(before: Counters, after: Counters) -> list[tuple[float, float]]:
    """The ratios of ticks to the curve between two readings: the middle of each bucket, and its count."""
    ratios, lower, below = [], 0.4, 0.0
    counts = [
        (bound, later - earlier)
        for (bound, later), (_, earlier) in zip(after.ratio_buckets, before.ratio_buckets, strict=True)
    ]
    for bound, count in counts:
        upper = 1.5 * lower if bound == float("inf") else bound
        if count > below:
            ratios.append(((lower + upper) / 2, count - below))
        lower, below = upper, count
    return ratios


def other_seconds() -> float:
    """Core-seconds that all processes of the machine have had."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, soft_irq, *_ = map(int, words)
    return (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK")


def print_table(comparisons: Sequence[Comparison]) -> None:
    """The comparisons on stderr."""
    table = Table(
        "profile", "images/h", "simulated", "error", "p50", "sim.", "p95", "sim.", "error", "load", "others"
    )
    for row in comparisons:
        table.add_row(
            row.profile, f"{row.throughput:,.0f}", f"{row.simulated_throughput:,.0f}",
            f"{row.throughput_error:+.1%}", f"{row.p50:.2f}", f"{row.simulated_p50:.2f}", f"{row.p95:.2f}",
            f"{row.simulated_p95:.2f}", f"{row.p95_error:+.1%}", f"{row.load_average:.1f}",
            f"{row.others:.0%}",
        )  # fmt: skip
    Console(width=130, stderr=True).print(table)


if __name__ == "__main__":
    sys.exit(main())
