"""The report of a load test: `report.md` with its plots, a self-contained `report.html`, `report.json`."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtests.results import Phase
from loadtests.tables import Table
from loadtests.verdicts import Verdict

STYLE = (
    "body{font:15px sans-serif;max-width:70em;margin:2em auto}img{margin:.5em}"
    "td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd}"
)
# Headings of the facts, by their keys in `report.json`.
FACT_HEADINGS = {
    "images an hour": "throughput, images/h",
    "p95 at the steady load": "latency p95, steady load",
    "locust's spike": "spike phase (locust)",
    "the client kept its times": "requests sent on schedule",
    "when": "date",
}
PHASE_HEADINGS = (
    "phase",
    "offered, images/h",
    "throughput, images/h",
    "latency p50",
    "latency p95",
    "latency p99",
    "requests",
    "failures",
)


def write_report(
    folder: Path,
    heading: str,
    facts: Mapping[str, str],
    phases: Sequence[Phase],
    verdicts: Sequence[Verdict],
    plots: Mapping[str, bytes],
) -> None:
    """Write the three reports and the plots into `folder`, which is created.

    Args:
        folder: where to write.
        heading: title of the report.
        facts: single values, by their keys in `report.json`.
        phases: the load phases, a row each.
        verdicts: the targets, a row each.
        plots: PNG files by name without suffix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, png in plots.items():
        (folder / f"{name}.png").write_bytes(png)
    tables = [facts_table(facts), targets_table(verdicts), phases_table(phases)]
    (folder / "report.md").write_text(_markdown(heading, tables, list(plots)))
    (folder / "report.html").write_text(_html(heading, tables, plots))
    report = {
        "facts": dict(facts),
        "phases": [phase.as_dict() for phase in phases],
        "targets": [verdict.as_dict() for verdict in verdicts],
    }
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")


def write_record(folder: Path, command: str, phases: Sequence[Phase], verdicts: Sequence[Verdict]) -> None:
    """Write `record.json` into `folder`, for docs/data: machine and commit are those of `bench.json` there.

    Args:
        folder: of the report; `safelight bench --json` was run before and its output is in it.
        command: what measured the phases.
        phases: the load phases.
        verdicts: the targets.
    """
    bench = json.loads((folder / "bench.json").read_text())
    figures = {
        "engine_images_per_hour": bench["figures"]["mixed"]["ours"]["images_per_hour"],
        "phases": [phase.as_dict() for phase in phases],
        "targets": [verdict.as_dict() for verdict in verdicts],
    }
    record = {name: bench[name] for name in ("machine", "commit", "date")}
    (folder / "record.json").write_text(
        json.dumps(record | {"command": command, "figures": figures}, indent=1) + "\n"
    )


def facts_table(facts: Mapping[str, str]) -> Table:
    return Table("", ["", ""], [[FACT_HEADINGS.get(key, key), value] for key, value in facts.items()])


def targets_table(verdicts: Sequence[Verdict]) -> Table:
    words = {True: "yes", False: "**no**", None: "not reachable here"}
    rows = [
        [verdict.name, verdict.required, verdict.measured, words[verdict.is_met], verdict.reason]
        for verdict in verdicts
    ]
    return Table("Targets", ["target", "required", "measured", "met", "reason"], rows)


def phases_table(phases: Sequence[Phase]) -> Table:
    return Table("Load phases", PHASE_HEADINGS, [_phase_row(phase) for phase in phases])


def _phase_row(phase: Phase) -> list[str]:
    percentiles = [f"{phase.percentile(percent):.2f} s" for percent in (50, 95, 99)]
    faults = ", ".join(f"{count} {fault}" for fault, count in phase.faults.items()) or "0"
    return [
        phase.name,
        f"{phase.offered_per_hour:.0f}",
        f"{phase.images_per_hour:.0f}",
        *percentiles,
        str(len(phase.results)),
        faults,
    ]


def _markdown(heading: str, tables: Sequence[Table], plots: Sequence[str]) -> str:
    parts = [f"# {heading}\n", *(table.as_markdown() for table in tables)]
    parts.append("\n".join(f"![{name.replace('-', ' ')}]({name}.png)" for name in plots))
    return "\n".join(parts) + "\n"


def _html(heading: str, tables: Sequence[Table], plots: Mapping[str, bytes]) -> str:
    """One file with the plots inside, so that it can be sent."""
    title = html.escape(heading)
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"
    ]
    parts += [table.as_html() for table in tables]
    for name, png in plots.items():
        data = base64.b64encode(png).decode()
        parts.append(f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">')
    return "\n".join(parts) + "\n"
