"""Compares forecasts of `safelight plan` and of the simulator with a real service on this machine.

    python -m tests.bench.forecasts [--seconds 60] [--json]

Takes about six minutes. A service is started and sent two kinds of load over HTTP: equal images, and the
load tests' mix. Each kind is sent all at once, and then at random at 0.6 of the forecast throughput.
Each forecast uses the cost curves (`/v1/curve`) that the service learnt in a shorter run of that load.
The simulator gets the very arrivals that the service gets.
The exit status is 1 if a forecast is off by more than its bar allows.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import track
from rich.table import Table

from loadtests.replay import replay
from loadtests.results import Phase
from loadtests.service import service
from loadtests.traces import Body, ScheduledRequest, poisson
from safelight.pipeline.benchmark.bars import FORECAST_BARS
from safelight.pipeline.benchmark.machine import Machine, identify_machine
from safelight.pipeline.benchmark.record import benchmark_record
from safelight.pipeline.capacity.devices import STAGES, MeasuredDevice, measured_device
from safelight.pipeline.capacity.fleet.fleet import Fleet, RequestClass
from safelight.pipeline.capacity.fleet.simulator import SimulationResult, Simulator
from safelight.pipeline.capacity.image_cost import ImageCost, ImageSpec, image_cost
from safelight.pipeline.capacity.model_profiles import model_profile
from safelight.pipeline.capacity.predict import HOUR, Targets, predict
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.service.settings import Settings
from tests.bench.verdicts import print_verdicts

STEADY = 0.6  # of the forecast throughput
NUM_AT_ONCE = 150
NUM_LEARNING = 80  # images before a forecast is made
POLL_SECONDS = 0.5
SETTLING_SECONDS = 5.0
FOR_EVER = 1e6
SEED = 77
Curves = dict[str, CostCurve]  # by stage


@dataclass(frozen=True, slots=True)
class ForecastComparison:
    """One figure, forecast and measured."""

    load: str
    figure: str
    by: str
    forecast: float
    measured: float

    @property
    def error(self) -> float:
        return self.forecast / self.measured - 1.0

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "load": self.load,
            "figure": self.figure,
            "by": self.by,
            "told": self.forecast,
            "seen": self.measured,
            "off": self.error,
        }


def main() -> int:
    """Print forecasts beside measurements, and write them to a file as JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="emoji-128")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the random load")
    parser.add_argument("--json", action="store_true", help="the record on stdout, for docs/data")
    args = parser.parse_args()
    model = find_model(args.model)
    comparisons: list[ForecastComparison] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        service(args.model, Path(folder) / "service.log") as running,
    ):
        for name, body in (("alike", _equal_body(model)), ("unlike", None)):
            comparisons += _Load(running.url, name, body, model).compare(args.seconds)
    _print(comparisons)
    figures = {
        "model": model.id,
        "seconds": args.seconds,
        "comparisons": [comparison.as_dict() for comparison in comparisons],
    }
    machine = identify_machine()
    if args.json:
        command = f"python -m tests.bench.forecasts --model {args.model} --seconds {args.seconds:g}"
        print(json.dumps(benchmark_record(machine, command, figures), indent=1))
    return judged(figures, machine)


def judged(figures: dict[str, Any], machine: Machine) -> int:
    """Print the verdict on every bar, on stderr; the exit status."""
    return print_verdicts(FORECAST_BARS, figures, machine)


def _equal_body(model: ModelInfo) -> Body:
    width, height = model.native_size
    return {
        "prompt": "a red apple", "size": f"{width}x{height}", "num_inference_steps": model.num_steps,
        "guidance_scale": model.guidance_scale, "solver": model.solver,
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Load:
    """One kind of load on the service: equal images of `body`, or the mix if it is None."""

    url: str
    name: str
    body: Body | None
    model: ModelInfo

    def compare(self, seconds: float) -> list[ForecastComparison]:
        """Send the load at once, then at random for about `seconds`, and compare each with its forecasts."""
        at_once = self._schedule(0.0, NUM_AT_ONCE, SEED)
        comparisons, simulation = self._compare(
            f"{self.name}, {NUM_AT_ONCE} at once", at_once, self._schedule(0.0, NUM_LEARNING, SEED + 1), None
        )
        rate = STEADY * simulation.images / simulation.last_done
        learning = self._schedule(rate, NUM_LEARNING, SEED + 2)
        at_random = self._schedule(rate, round(rate * seconds), SEED + 3)
        return comparisons + self._compare(f"{self.name}, at {STEADY:g} of it", at_random, learning, rate)[0]

    def _compare(
        self,
        load: str,
        schedule: Sequence[ScheduledRequest],
        learning: Sequence[ScheduledRequest],
        rate: float | None,
    ) -> tuple[list[ForecastComparison], SimulationResult]:
        """Compare the simulator with the service, and for equal images the plan as well.

        Args:
            load: its name.
            schedule: the requests of the comparison.
            learning: requests sent before it, from which the service learns its cost curves.
            rate: of the schedule in images a second; None if all come at once.

        Returns:
            The comparisons and the simulation.
        """
        device = _learn(self.url, f"{self.name}, learning", learning, self.model)
        profile = model_profile(self.model)
        images = [(request.at, image_cost(profile, _image_spec(request.body))) for request in schedule]
        simulation = _simulate(images, device)
        phase = _measure(self.url, load, schedule)
        comparisons = _against_simulator(load, simulation, schedule, phase)
        if self.body is None:
            return comparisons, simulation
        targets = Targets() if rate is None else Targets(HOUR * rate, 5.0, 95.0)
        prediction = predict(profile, _image_spec(self.body), device, targets)
        if rate is None:
            comparison = "images an hour", prediction.images_per_hour_per_device, phase.images_per_hour
        else:
            comparison = "p95, s", prediction.latency_s, phase.percentile(95)
        figure, forecast, measured = comparison
        plan = ForecastComparison(load, figure, "safelight plan", forecast, measured)
        return [*comparisons, plan], simulation

    def _schedule(self, rate: float, count: int, seed: int) -> list[ScheduledRequest]:
        """Poisson arrivals at `rate` a second, or all at once if it is 0, each with its own prompt and noise.

        A prompt of its own is not in the text encoder's cache.
        """
        sizes = [f"{width}x{height}" for width, height in self.model.sizes]
        requests = poisson(rate or 1.0, 2.0 * count / (rate or 1.0) + 30.0, sizes, seed)[:count]
        schedule = []
        for number, request in enumerate(requests):
            body = self.body or request.body
            body = body | {"prompt": f"{body['prompt']} {seed} {number}", "seed": number}
            schedule.append(ScheduledRequest(request.at if rate else 0.0, body))
        return schedule


def _learn(url: str, name: str, schedule: Sequence[ScheduledRequest], model: ModelInfo) -> MeasuredDevice:
    """The device by the service's own cost curves under this load: for each stage the curve of median speed.

    A cost curve follows the typical tick and gives outliers little weight.
    Where several processes compete for the same cores, outliers are common.
    So the denoiser's curve is scaled by the mean of actual over forecast seconds of its ticks.
    """
    before = _tick_ratios(url)
    reported = asyncio.run(_poll_curves(url, schedule))
    curves = {
        stage: sorted(
            (curves[stage] for curves in reported), key=lambda curve: curve.seconds_for(curve.work[-1])
        )[len(reported) // 2]
        for stage in STAGES
    }
    time.sleep(SETTLING_SECONDS)  # the ledger gets reports of ticks once a second
    after, settings, denoise = _tick_ratios(url), Settings(), curves["denoise"]
    ratio = (after[0] - before[0]) / (after[1] - before[1])
    slowdowns = " ".join(f"{stage} {curve.slowdown:.2f}" for stage, curve in curves.items())
    sys.stderr.write(f"{name}: ticks take {ratio:.2f} of their forecast; slowdown of curves: {slowdowns}\n")
    curves["denoise"] = replace(denoise, slowdown=denoise.slowdown * ratio)
    return measured_device(
        curves, model_profile(model), model.native_size, settings.max_rows, settings.max_tokens
    )


async def _poll_curves(url: str, schedule: Sequence[ScheduledRequest]) -> list[Curves]:
    """Every stage's cost curve, twice a second while the schedule is replayed."""
    polled = []
    replaying = asyncio.ensure_future(replay(url, schedule))
    async with httpx2.AsyncClient(base_url=url, timeout=30.0) as client:
        while not replaying.done():
            await asyncio.sleep(POLL_SECONDS)
            curves = (await client.get("/v1/curve")).raise_for_status().json()
            polled.append(
                {
                    stage: CostCurve(tuple(curve["work_flops"]), tuple(curve["seconds"]), curve["factor"])
                    for stage, curve in ((stage, curves[stage]) for stage in STAGES)
                }
            )
    await replaying
    return polled


def _tick_ratios(url: str) -> tuple[float, float]:
    """The sum of actual over forecast seconds of all ticks, and the number of ticks."""
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(httpx2.get(f"{url}/metrics").text)
        for sample in family.samples
    }
    return samples["safelight_tick_forecast_ratio_sum"], samples["safelight_tick_forecast_ratio_count"]


def _image_spec(body: Body) -> ImageSpec:
    width, height = map(int, body["size"].split("x"))
    return ImageSpec((width, height), body["num_inference_steps"], body["guidance_scale"], body["solver"])


def _measure(url: str, name: str, schedule: Sequence[ScheduledRequest]) -> Phase:
    bar = iter(track(range(len(schedule)), description=name, console=Console(stderr=True)))

    def advance(_: int) -> None:
        next(bar, None)

    results = asyncio.run(replay(url, schedule, progress=advance))
    next(bar, None)
    phase = Phase(name, 0.0, tuple(results))
    if phase.faults:
        raise SystemExit(f"{name}: {dict(phase.faults)}; nothing can be compared")
    return phase


def _simulate(images: Sequence[tuple[float, ImageCost]], device: MeasuredDevice) -> SimulationResult:
    """One denoiser that gets `images`, each at its time in seconds."""
    costs = list(dict.fromkeys(cost for _, cost in images))
    classes = tuple(
        RequestClass(
            (cost.rows,) * len(cost.ticks),
            cost.ticks,
            cost.tokens,
            cost.rows * device.text_seconds + device.decode_seconds,
        )
        for cost in costs
    )
    recorded = [(at, costs.index(cost)) for at, cost in images]
    fleet = Fleet(
        gpus=1,
        curve=device.curve,
        limits=device.limits,
        request_classes=classes,
        deadline=FOR_EVER,
        downscale_delay=FOR_EVER,
    )
    return Simulator(fleet, 1.0, "steady", images[-1][0] + 3600.0, recorded=recorded).run()


def _against_simulator(
    load: str, simulation: SimulationResult, schedule: Sequence[ScheduledRequest], phase: Phase
) -> list[ForecastComparison]:
    throughput = HOUR * simulation.images / (simulation.last_done - schedule[0].at)
    by = "the simulator"
    return [
        ForecastComparison(load, "images an hour", by, throughput, phase.images_per_hour),
        ForecastComparison(load, "p95, s", by, simulation.percentile(0.95), phase.percentile(95)),
    ]


def _print(comparisons: Sequence[ForecastComparison]) -> None:
    table = Table("load", "figure", "forecast by", "forecast", "measured", "error")
    for comparison in comparisons:
        table.add_row(
            comparison.load,
            comparison.figure,
            comparison.by,
            f"{comparison.forecast:.4g}",
            f"{comparison.measured:.4g}",
            f"{comparison.error:+.1%}",
        )
    Console(width=110, stderr=True).print(table)


if __name__ == "__main__":
    sys.exit(main())
