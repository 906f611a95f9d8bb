"""The generated blocks of docs/capacity.md: from `safelight plan`, and from the figures of docs/data."""

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

from docs.figures.data import Run, find_run
from docs.figures.markdown import table
from docs.figures.performance import HEADINGS, MACHINES, run_section
from safelight.pipeline.benchmark.bars import FORECAST_BARS, SIMULATOR_BARS, VERDICT_HEADER, judge
from safelight.pipeline.capacity.fleet.control_plane import UnitCosts
from safelight.service import cli

MODELS = ("pixart-sigma", "sd3-medium", "sd3.5-medium", "sd3.5-large", "flux.1-dev")
GPUS, SHARES, STEPS = ("a100", "h100"), (0.4, 0.5, 0.6), (20, 28)
UNIT_COSTS = {
    "gateway_request": "a request of one image, in the gateway and Serve's proxy together",
    "ledger_report": "a usage report of a replica, in the ledger",
    "ledger_event": "a usage event in such a report",
    "controller_replica": "a second of an autoscaled replica, in Serve's controller",
}
SIMULATOR_HEADER = (
    "profile", "images", "images an hour, simulated / live", "error", "p95, s, simulated / live", "error",
    "load average", "cores of others",
)  # fmt: skip
Plan = Mapping[str, Any]
Plans = Mapping[tuple[str, str, int, float], Plan]  # by model, GPU, steps and MFU


@dataclass(frozen=True)
class PublishedTime:
    """The published seconds of one image of 1024x1024 alone, and the MFU that they imply."""

    model: str
    gpu: str
    steps: int
    seconds: float
    mfu: float
    how: str
    source: str


def published_times(runs: Sequence[Run]) -> tuple[PublishedTime, ...]:
    """The rows of docs/data/published/times.json."""
    return tuple(PublishedTime(**row) for row in find_run(runs, "published", "times").figures["times"])


def blocks(runs: Sequence[Run]) -> dict[str, str]:
    """The blocks of docs/capacity.md."""
    plans = all_plans()
    return {
        "predicted": seconds_table(plans),
        "most steps": steps_table(plans),
        "published": published_table(runs),
        "batching": _simulated(runs, "batching"),
        "forecasts": forecasts(runs),
        "simulator": simulator_errors(runs),
        "fleet": fleets(runs),
        "unit costs": unit_costs(runs),
    }


def run_plan(model: str, gpu: str, steps: int, mfu: float) -> dict[str, Any]:
    """The output of `safelight plan --json`."""
    output = io.StringIO()
    with redirect_stdout(output):
        cli.main(["plan", "--model", model, "--gpu", gpu, "--steps", str(steps), "--mfu", str(mfu), "--json"])
    plan: dict[str, Any] = json.loads(output.getvalue())
    return plan


def all_plans() -> Plans:
    """The plans of the first two tables."""
    keys = [(model, gpu, steps, mfu) for model in MODELS for gpu in GPUS for steps in STEPS for mfu in SHARES]
    return {key: run_plan(*key) for key in keys}


def seconds_table(plans: Plans) -> str:
    """Seconds of an image alone and images an hour, for one device."""
    rows = []
    for model in MODELS:
        for steps in STEPS:
            by_device = [plans[model, gpu, steps, mfu] for gpu in GPUS for mfu in SHARES]
            cells = [
                f"{plan['service_s']:.2f} s, {plan['images_per_hour_per_device']:.0f}/h" for plan in by_device
            ]
            rows.append((f"`{model}`", steps, f"{by_device[0]['tflop_per_image']:.0f}", *cells))
    return table(("model", "steps", "TFLOP", *_devices()), rows)


def steps_table(plans: Plans) -> str:
    """The most steps within the targets: of an image alone, and of 95 % of images that arrive at random."""
    rows = []
    for model in MODELS:
        by_device = [plans[model, gpu, STEPS[0], mfu]["steps_that_meet"] for gpu in GPUS for mfu in SHARES]
        rows.append((f"`{model}`", *(f"{steps['alone']}; {steps['under_load']}" for steps in by_device)))
    return table(("model", *_devices()), rows)


def published_table(runs: Sequence[Run]) -> str:
    """Published seconds beside those predicted at the row's MFU."""
    rows = []
    for published in published_times(runs):
        plan = run_plan(published.model, published.gpu, published.steps, published.mfu)
        rows.append(
            (
                f"`{published.model}`",
                published.gpu.upper(),
                published.steps,
                published.seconds,
                f"{published.mfu:.0%}",
                f"{plan['service_s']:.2f}",
                published.how,
                published.source,
            )
        )
    header = (
        "model",
        "device",
        "steps",
        "published, s",
        "implied MFU",
        "predicted at it, s",
        "how",
        "source",
    )
    return table(header, rows)


def simulator_errors(runs: Sequence[Run]) -> str:
    """The simulator beside the service that it simulates, a section for each run."""
    parts = []
    for run in _of_machines(runs, "simulator"):
        rows = [
            (
                row["profile"],
                row["requests"],
                f"{_short(row['simulated_throughput'])} / {_short(row['throughput'])}",
                f"{row['throughput_error']:+.0%}",
                f"{row['simulated_p95']:.2f} / {row['p95']:.2f}",
                f"{row['p95_error']:+.0%}",
                f"{row['load_average']:.1f}",
                f"{row['others']:.0%}",
            )
            for row in run.figures["comparisons"]
        ]
        verdicts = judge(SIMULATOR_BARS, run.figures, run.kind)
        parts += [
            f"### {HEADINGS[run.folder]}, beside the live service",
            run.provenance,
            table(SIMULATOR_HEADER, rows),
            table(VERDICT_HEADER, [verdict.cells for verdict in verdicts]),
            "\n".join(f"- {note}" for note in run.record.get("notes", ())),
        ]
    return "\n\n".join(filter(None, parts))


def forecasts(runs: Sequence[Run]) -> str:
    """Forecasts beside measurements, a section for each machine."""
    parts = []
    for run in _of_machines(runs, "forecasts"):
        rows = [
            (
                row["load"],
                row["figure"],
                row["by"],
                _short(row["told"]),
                _short(row["seen"]),
                f"{row['off']:+.0%}",
            )
            for row in run.figures["comparisons"]
        ]
        verdicts = judge(FORECAST_BARS, run.figures, run.kind)
        parts += [
            f"### {HEADINGS[run.folder]}",
            run.provenance,
            table(("load", "metric", "forecast by", "forecast", "measured", "error"), rows),
            table(VERDICT_HEADER, [verdict.cells for verdict in verdicts]),
            "\n".join(f"- {note}" for note in run.record.get("notes", ())),
        ]
    return "\n\n".join(filter(None, parts))


def unit_costs(runs: Sequence[Run]) -> str:
    """The unit costs that `safelight simulate` assumes, beside those that were measured."""
    measured = _of_machines(runs, "control-plane")
    names = [f"measured with {HEADINGS[run.folder]}, ms" for run in measured]
    rows = [
        (text, f"{1e3 * getattr(UnitCosts(), name):.3g}")
        + tuple(f"{1e3 * run.figures[name]:.3g}" for run in measured)
        for name, text in UNIT_COSTS.items()
    ]
    lines = [f"{HEADINGS[run.folder]}: {run.provenance}" for run in measured]
    return "\n\n".join([table(("processor time", "assumed, ms", *names), rows), *lines])


FLEET_HEADER = (
    "max GPUs", "images/h", "p50, s", "p95, s", "p99, s", "GPU hours", "utilisation", "cost of 1000",
    "gateway processes", "ledger", "controller",
)  # fmt: skip


def fleets(runs: Sequence[Run]) -> str:
    """The fleets that `safelight simulate` followed, and the load of their control planes."""
    run = find_run(runs, "simulated", "fleet")
    rows = [_fleet_row(report) for report in run.figures["fleets"]]
    return "\n\n".join([run.provenance, table(FLEET_HEADER, rows)])


def _fleet_row(report: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of the table of fleets, from one entry of `fleets` in `safelight simulate --json`."""
    control_plane = report["control_plane"]
    return (
        f"{report['gpus']:,}",
        f"{report['images_per_hour']:,.0f}",
        *(f"{report[name]:.2f}" for name in ("p50_s", "p95_s", "p99_s")),
        f"{report['gpu_hours']:,.0f}",
        f"{report['utilisation']:.0%}",
        f"{report['cost_per_1000_images']:.2f}",
        f"{control_plane['gateways']['used']:.1f}",
        f"{control_plane['ledger']['share']:.0%}",
        f"{control_plane['controller']['share']:.0%}",
    )


def _of_machines(runs: Sequence[Run], name: str) -> list[Run]:
    return [run for folder in MACHINES for run in runs if (run.folder, run.name) == (folder, name)]


def _simulated(runs: Sequence[Run], name: str) -> str:
    run = find_run(runs, "simulated", name)
    return run_section(run).partition("\n\n")[2]  # the page has its own heading


def _devices() -> tuple[str, ...]:
    return tuple(f"{gpu.upper()}, {mfu:.0%}" for gpu in GPUS for mfu in SHARES)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
