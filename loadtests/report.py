"""A run's report: `report.md` with its plots beside it, the same as one `report.html`, and the figures as `report.json`."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtests.figures import Phase, Verdict, as_dicts, summary


def write_report(
    folder: Path,
    heading: str,
    facts: Mapping[str, str],
    phases: Sequence[Phase],
    verdicts: Sequence[Verdict],
    plots: Mapping[str, bytes],
) -> None:
    """All three into `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, png in plots.items():
        (folder / f"{name}.png").write_bytes(png)
    tables = [
        ("", ["", ""], [[name, value] for name, value in facts.items()]),
        (
            "Targets",
            ["target", "wanted", "got", "met"],
            [[v.name, v.wanted, v.got, "yes" if v.is_met else "**no**"] for v in verdicts],
        ),
        (
            "Loads",
            ["load", "offered an hour", "images an hour", "p50", "p95", "p99", "requests", "not good"],
            [_row(phase) for phase in phases],
        ),
    ]
    (folder / "report.md").write_text(_markdown(heading, tables, list(plots)))
    (folder / "report.html").write_text(_html(heading, tables, plots))
    found = {
        "facts": dict(facts),
        "phases": [summary(phase) for phase in phases],
        "targets": as_dicts(verdicts),
    }
    (folder / "report.json").write_text(json.dumps(found, indent=1) + "\n")


Table = tuple[str, list[str], list[list[str]]]


def _row(phase: Phase) -> list[str]:
    times = [f"{phase.percentile(percent):.2f} s" for percent in (50, 95, 99)]
    faults = ", ".join(f"{count} {fault}" for fault, count in phase.faults.items()) or "0"
    return [
        phase.name,
        f"{phase.offered_per_hour:.0f}",
        f"{phase.images_per_hour:.0f}",
        *times,
        str(len(phase.results)),
        faults,
    ]


def _markdown(heading: str, tables: Sequence[Table], plots: Sequence[str]) -> str:
    lines = [f"# {heading}", ""]
    for title, head, rows in tables:
        lines += [f"## {title}", ""] if title else []
        lines += [
            f"| {' | '.join(head)} |",
            "|" + "---|" * len(head),
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
        ]
    lines += [f"![{name.replace('-', ' ')}]({name}.png)" for name in plots]
    return "\n".join(lines) + "\n"


def _html(heading: str, tables: Sequence[Table], plots: Mapping[str, bytes]) -> str:
    """One file, its plots inside, so that it can be sent."""
    style = "body{font:15px sans-serif;max-width:70em;margin:2em auto}img{margin:.5em}"
    style += "td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd}"
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{html.escape(heading)}</title><style>{style}</style><h1>{html.escape(heading)}</h1>"
    ]
    for title, head, rows in tables:
        parts.append(f"<h2>{html.escape(title)}</h2>" if title else "")
        cells = ["".join(f"<td>{html.escape(cell.replace('**', ''))}</td>" for cell in row) for row in rows]
        parts.append(
            f"<table><tr>{''.join(f'<th>{html.escape(name)}</th>' for name in head)}</tr><tr>{'</tr><tr>'.join(cells)}</tr></table>"
        )
    for name, png in plots.items():
        parts.append(
            f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        )
    return "\n".join(parts) + "\n"
