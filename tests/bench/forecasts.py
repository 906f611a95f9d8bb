"""What `safelight plan` and the simulator tell, beside the service itself on this machine; about six minutes.

    python -m tests.bench.forecasts [--seconds 60] [--json FILE]

A service is started and asked, over HTTP: images that are alike, and the load tests' mix of unlike ones, each as many at once and
then at random at six tenths of what was told. Told before each, from what the service has learnt of its own pace by then (`/v1/curve`)
in a shorter run of the same load; the simulator is given the very arrivals that the service gets. The exit status is 1 if the
simulator is more than 20 % off, or the plan more than 15 %.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import track
from rich.table import Table

from loadtests.figures import Phase
from loadtests.replay import replay
from loadtests.service import service
from loadtests.traces import Arrival, Body, poisson
from safelight.pipeline.capacity.devices import STAGES, MeasuredDevice, measured_device
from safelight.pipeline.capacity.fleet.fleet import Fleet, RequestClass
from safelight.pipeline.capacity.fleet.simulator import SimulationResult, Simulator
from safelight.pipeline.capacity.image_cost import ImageCost, ImageSpec, ModelProfile, image_cost
from safelight.pipeline.capacity.model_profiles import model_profile
from safelight.pipeline.capacity.predict import HOUR, Targets, predict
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.service.settings import Settings

STEADY = 0.6  # of the images an hour that are told
AT_ONCE = 150
LEARNING = 80  # images, before anything is told
ASKED_EVERY = 0.5  # seconds
SETTLING_SECONDS = 5.0
FOR_EVER = 1e6
SEED = 77
MOST_OFF = {"the simulator": 0.20, "safelight plan": 0.15}


@dataclass(frozen=True, slots=True)
class Line:
    """One figure, told and seen."""

    load: str
    figure: str
    by: str
    told: float
    seen: float

    @property
    def off(self) -> float:
        return self.told / self.seen - 1.0


def main() -> int:
    """Print told and seen, and how far apart they are; into a file as well, as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="emoji-128")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the load at random")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = find_model(args.model)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder, service(args.model, Path(folder) / "service.log") as url:
        for name, body in (("alike", _alike(model)), ("unlike", None)):
            lines += _compare(url, name, body, model, args.seconds)
    _print(lines)
    if args.json:
        args.json.write_text(
            json.dumps([asdict(line) | {"off": line.off} for line in lines], indent=1) + "\n"
        )
    return int(any(abs(line.off) > MOST_OFF[line.by] for line in lines))


def _alike(model: ModelInfo) -> Body:
    width, height = model.native_size
    return {
        "prompt": "a red apple", "size": f"{width}x{height}", "num_inference_steps": model.num_steps,
        "guidance_scale": model.guidance_scale, "solver": model.solver,
    }  # fmt: skip


def _compare(url: str, name: str, body: Body | None, model: ModelInfo, seconds: float) -> list[Line]:
    outline, order = model_profile(model), _order(body) if body else None
    sizes = [f"{width}x{height}" for width, height in model.sizes]

    def coming(rate: float, count: int, seed: int) -> list[Arrival]:
        drawn = poisson(rate or 1.0, 2.0 * count / (rate or 1.0) + 30.0, sizes, seed)[:count]
        return [
            replace(
                each, at=each.at if rate else 0.0, body=(body or each.body) | _own(each, body, number, seed)
            )
            for number, each in enumerate(drawn)
        ]

    def told_of(arrivals: Sequence[Arrival], measured: MeasuredDevice) -> SimulationResult:
        return _simulated([(each.at, _work(outline, each.body)) for each in arrivals], measured)

    at_once, load = coming(0.0, AT_ONCE, SEED), f"{name}, {AT_ONCE} at once"
    measured = _learnt(url, f"{name}, learning", coming(0.0, LEARNING, SEED + 1), model)
    told, seen = told_of(at_once, measured), _seen(url, load, at_once)
    lines = _lines(load, told, at_once, seen)
    if order is not None:
        plan = predict(outline, order, measured, Targets())
        lines.append(
            Line(
                load,
                "images an hour",
                "safelight plan",
                plan.images_per_hour_per_device,
                seen.images_per_hour,
            )
        )

    rate = STEADY * told.images / told.last_done
    measured = _learnt(url, f"{name}, learning", coming(rate, LEARNING, SEED + 2), model)
    at_random, load = coming(rate, round(rate * seconds), SEED + 3), f"{name}, at {STEADY:g} of it"
    told, seen = told_of(at_random, measured), _seen(url, load, at_random)
    lines += _lines(load, told, at_random, seen)
    if order is not None:
        plan = predict(outline, order, measured, Targets(HOUR * rate, 5.0, 95.0))
        lines.append(Line(load, "p95, s", "safelight plan", plan.latency_s, seen.percentile(95)))
    return lines


def _learnt(url: str, name: str, arrivals: Sequence[Arrival], model: ModelInfo) -> MeasuredDevice:
    """By what the service says under this load: of all that it said, what has the median speed, for each stage.

    A curve follows what a tick mostly takes, and lets a hiccup count for little. Where several processes want the same cores hiccups
    are the rule, so the denoiser's is put right by how much longer than told its ticks took on average.
    """
    before = _ticks(url)

    async def ask() -> list[dict[str, CostCurve]]:
        said = []
        drawing = asyncio.ensure_future(replay(url, arrivals))
        async with httpx.AsyncClient(base_url=url, timeout=30.0) as client:
            while not drawing.done():
                await asyncio.sleep(ASKED_EVERY)
                answer = (await client.get("/v1/curve")).raise_for_status().json()
                said.append(
                    {
                        stage: CostCurve(tuple(e["work_flops"]), tuple(e["seconds"]), e["factor"])
                        for stage, e in answer.items()
                    }
                )
        await drawing
        return said

    said = asyncio.run(ask())
    curves = {
        stage: sorted((each[stage] for each in said), key=lambda c: c.seconds_for(c.work[-1]))[len(said) // 2]
        for stage in STAGES
    }
    time.sleep(SETTLING_SECONDS)  # the ledger hears of ticks once a second
    after, settings, curve = _ticks(url), Settings(), curves["denoise"]
    longer = (after[0] - before[0]) / (after[1] - before[1])
    print(
        f"{name}: ticks take {longer:.2f} of what is told, {' '.join(f'{stage} {curve.slowdown:.2f}' for stage, curve in curves.items())}"
    )
    curves["denoise"] = replace(curve, factor=curve.slowdown * longer)
    return measured_device(
        curves, model_profile(model), model.native_size, settings.max_rows, settings.max_tokens
    )


def _ticks(url: str) -> tuple[float, float]:
    """The sum of ticks' seconds over what was told of them, and their number."""
    samples = {
        s.name: s.value
        for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
        for s in family.samples
    }
    return samples["safelight_tick_forecast_ratio_sum"], samples["safelight_tick_forecast_ratio_count"]


def _own(arrival: Arrival, body: Body | None, number: int, seed: int) -> Body:
    """A text that nobody remembers, and noise of its own."""
    return {"prompt": f"{(body or arrival.body)['prompt']} {seed} {number}", "seed": number}


def _order(body: Body) -> ImageSpec:
    width, height = map(int, body["size"].split("x"))
    return ImageSpec((width, height), body["num_inference_steps"], body["guidance_scale"], body["solver"])


def _work(outline: ModelProfile, body: Body) -> ImageCost:
    return image_cost(outline, _order(body))


def _seen(url: str, name: str, arrivals: Sequence[Arrival]) -> Phase:
    bar = iter(track(range(len(arrivals)), description=name))
    results = asyncio.run(replay(url, arrivals, progress=lambda _: next(bar, None)))
    next(bar, None)
    phase = Phase(name, 0.0, tuple(results))
    if phase.faults:
        raise SystemExit(f"{name}: {dict(phase.faults)}; nothing can be compared")
    return phase


def _simulated(coming: Sequence[tuple[float, ImageCost]], measured: MeasuredDevice) -> SimulationResult:
    works = list(dict.fromkeys(work for _, work in coming))
    kinds = tuple(
        RequestClass(
            (work.rows,) * len(work.ticks),
            work.ticks,
            work.tokens,
            work.rows * measured.text_seconds + measured.decode_seconds,
        )
        for work in works
    )
    recorded = [(moment, works.index(work)) for moment, work in coming]
    fleet = Fleet(
        gpus=1,
        curve=measured.curve,
        limits=measured.limits,
        request_classes=kinds,
        deadline=FOR_EVER,
        downscale_delay=FOR_EVER,
    )
    return Simulator(fleet, 1.0, "steady", coming[-1][0] + 3600.0, recorded=recorded).run()


def _lines(load: str, told: SimulationResult, arrivals: Sequence[Arrival], seen: Phase) -> list[Line]:
    return [
        Line(
            load,
            "images an hour",
            "the simulator",
            HOUR * told.images / (told.last_done - arrivals[0].at),
            seen.images_per_hour,
        ),
        Line(load, "p95, s", "the simulator", told.percentile(0.95), seen.percentile(95)),
    ]


def _print(lines: Sequence[Line]) -> None:
    table = Table("load", "figure", "told by", "told", "seen", "off")
    for line in lines:
        table.add_row(
            line.workload, line.figure, line.by, f"{line.told:.4g}", f"{line.seen:.4g}", f"{line.off:+.1%}"
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    sys.exit(main())
