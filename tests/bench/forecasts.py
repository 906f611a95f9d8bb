"""What `safelight plan` and the simulator tell of this machine, beside the service itself on it; about eight minutes.

    python -m tests.bench.forecasts [--seconds 60] [--json FILE]

Told first, from what ticks, texts and pictures are measured to cost; then a service is started and asked, over HTTP: pictures that are
alike, and the load tests' mix of unlike ones, each at six tenths of what is told and at half as much again. The simulator is given the
very arrivals that the service gets.
"""

import argparse
import asyncio
import json
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from loadtests.figures import Phase
from loadtests.replay import replay
from loadtests.service import service
from loadtests.traces import Arrival, Body, poisson
from pipeline.build.pace import measure_pace
from pipeline.capacity import HOUR, Measured, Order, Outline, PictureWork, Targets, outline_of, picture_work, predict
from pipeline.catalog import find_model
from pipeline.fleet.simulator import Fleet, Kind, Outcome, Simulator
from pipeline.params import ModelInfo
from service.settings import Settings, num_cores

STEADY, TOO_MUCH = 0.6, 1.5
WARM_UP = 12  # requests that nobody counts
FOR_EVER = 1e6
ROUNDS = 4  # of how much of the machine the other stages take, which follows from how many pictures are drawn
SEED = 77


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


def main() -> None:
    """Print told and seen, and how far apart they are; into a file as well, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji-128")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = find_model(args.model)
    measured = _measured(model, Settings(model=args.model))
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder, service(args.model, Path(folder) / "service.log") as url:
        for name, first in (("alike", _alike(model)), ("unlike", None)):
            lines += _compare(url, name, first, model, measured, args.seconds)
    _print(lines)
    if args.json:
        args.json.write_text(json.dumps([asdict(line) | {"off": line.off} for line in lines], indent=1) + "\n")


def _measured(model: ModelInfo, settings: Settings) -> Measured:
    """In a process of its own, which gives back what it took of the machine."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
        found = apart.submit(
            measure_pace, model, model.native_size, num_threads=settings.denoise_threads or num_cores(), max_rows=settings.max_rows,
            max_tokens=settings.max_tokens, quantization=settings.quantization, say=print,
        ).result()  # fmt: skip
    if found is None:
        raise SystemExit(f"{model.id} is too large to be tried on this machine")
    return found


def _alike(model: ModelInfo) -> Body:
    width, height = model.native_size
    return {
        "prompt": "a red apple", "size": f"{width}x{height}", "num_inference_steps": model.num_steps,
        "guidance_scale": model.guidance_scale, "solver": model.solver,
    }  # fmt: skip


def _compare(url: str, name: str, body: Body | None, model: ModelInfo, measured: Measured, seconds: float) -> list[Line]:
    outline = outline_of(model)
    sizes = [f"{width}x{height}" for width, height in model.sizes]

    def coming(rate: float, length: float, seed: int) -> list[Arrival]:
        drawn = poisson(rate, length, sizes, seed)
        return [replace(each, body=(body or each.body) | _own(each, body, number, seed)) for number, each in enumerate(drawn)]

    probe = [_work(outline, each.body) for each in coming(10.0, 200.0, SEED)]
    capacity = len(probe) / sum(measured.busy_seconds(work).total for work in probe)
    asyncio.run(replay(url, coming(capacity, WARM_UP / capacity, SEED + 1)))
    found = []
    for share in (STEADY, TOO_MUCH):
        load = f"{name}, {share:g} of what is told"
        arrivals = coming(share * capacity, seconds, SEED + 2)
        told = _simulated([(each.at, _work(outline, each.body)) for each in arrivals], measured)
        seen = _seen(url, load, arrivals, share * capacity)
        found += _lines(load, "the simulator", HOUR * told.images / (told.last_done - arrivals[0].at), told.percentile(0.95), seen)
        if body is not None and share < 1.0:
            plan = predict(outline, _order(body), measured, Targets(HOUR * capacity * share, 5.0, 95.0))
            found.append(Line(load, "p95, s", "safelight plan", plan.latency_s, seen.percentile(95)))
        elif body is not None:
            plan = predict(outline, _order(body), measured, Targets())
            found.append(Line(load, "pictures an hour", "safelight plan", plan.images_per_hour_per_device, seen.images_per_hour))
    return found


def _own(arrival: Arrival, body: Body | None, number: int, seed: int) -> Body:
    """A text that nobody remembers, and noise of its own."""
    return {"prompt": f"{(body or arrival.body)['prompt']} {seed} {number}", "seed": number}


def _order(body: Body) -> Order:
    width, height = map(int, body["size"].split("x"))
    return Order((width, height), body["num_inference_steps"], body["guidance_scale"], body["solver"])


def _work(outline: Outline, body: Body) -> PictureWork:
    return picture_work(outline, _order(body))


def _seen(url: str, name: str, arrivals: Sequence[Arrival], rate: float) -> Phase:
    with_bar = track(range(len(arrivals)), description=name)
    bar = iter(with_bar)
    results = asyncio.run(replay(url, arrivals, progress=lambda _: next(bar, None)))
    next(bar, None)
    phase = Phase(name, HOUR * rate, tuple(results))
    if phase.faults:
        raise SystemExit(f"{name}: {dict(phase.faults)}; nothing can be compared")
    return phase


def _simulated(coming: Sequence[tuple[float, PictureWork]], measured: Measured) -> Outcome:
    """One machine with all three stages: what reading and decoding take of it is taken off the denoiser's speed."""
    works = list(dict.fromkeys(work for _, work in coming))
    kinds = tuple(Kind((work.rows,) * len(work.ticks), work.ticks, work.tokens, _others(work, measured)) for work in works)
    recorded = [(moment, works.index(work)) for moment, work in coming]
    rate, others = len(coming) / coming[-1][0], sum(_others(work, measured) for _, work in coming) / len(coming)
    for _ in range(ROUNDS):
        curve = replace(measured.curve, factor=measured.curve.factor / (1.0 - rate * others))
        fleet = Fleet(gpus=1, curve=curve, limits=measured.limits, kinds=kinds, deadline=FOR_EVER, downscale_delay=FOR_EVER)
        outcome = Simulator(fleet, rate, "steady", 20.0 * coming[-1][0], recorded=recorded).run()
        rate = outcome.images / (outcome.last_done - coming[0][0])
    return outcome


def _others(work: PictureWork, measured: Measured) -> float:
    return work.rows * measured.text_seconds + measured.decode_seconds


def _lines(load: str, by: str, images_per_hour: float, p95: float, seen: Phase) -> list[Line]:
    return [
        Line(load, "pictures an hour", by, images_per_hour, seen.images_per_hour),
        Line(load, "p95, s", by, p95, seen.percentile(95)),
    ]


def _print(lines: Sequence[Line]) -> None:
    table = Table("load", "figure", "told by", "told", "seen", "off")
    for line in lines:
        table.add_row(line.load, line.figure, line.by, f"{line.told:.4g}", f"{line.seen:.4g}", f"{line.off:+.1%}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
