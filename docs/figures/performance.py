"""The generated blocks of docs/performance.md and the table of the README."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from docs.figures.data import Run, find_run
from docs.figures.markdown import table
from safelight.pipeline.benchmark.bars import (
    BENCH_BARS,
    FORECAST_BARS,
    RANDOM_WEIGHTS_BARS,
    SIMULATOR_BARS,
    STREAMING_BARS,
    UPDATE_BARS,
    VERDICT_HEADER,
    judge,
)

MACHINES = ("avx2", "amx", "avx512-bf16")  # in the order of the page: the newest figures first
HEADINGS = {"avx2": "AVX2", "amx": "AMX", "avx512-bf16": "AVX-512 with bfloat16"}
# In the order of the page; runs that stand here are shown first, the others by name.
ORDER = ("bench", "bench-2", "bench-1", "update", "http")
OTHER_PAGES = ("forecasts", "control-plane", "simulator")  # runs that docs/capacity.md shows
WAYS = {
    "ours": "engine",
    "serial_eager": "diffusers, one at a time",
    "serial_compiled": "the same, compiled",
    "static_best": "diffusers, better static batches",
}
ALONE = {
    "ours": "ours_s",
    "serial_eager": "diffusers_eager_s",
    "serial_compiled": "diffusers_compiled_s",
}
# Figures without a bar, and those that are shown of earlier runs: name, key, whether it is a share.
OTHER_FIGURES = (
    ("MFU, all ticks of the trace", "mfu_under_trace", True),
    ("slowdown behind 40 long requests", "head_of_line_crowded", False),
)
MAIN_FIGURES = (
    ("MFU, full ticks", "mfu", True),
    ("time outside the network, full ticks", "bookkeeping_share", True),
)
Figures = Mapping[str, Any]


def blocks(runs: Sequence[Run]) -> dict[str, str]:
    """The blocks of docs/performance.md."""
    return {
        "bars": bars_table(),
        "machines": "\n\n".join(_machine(runs, folder) for folder in MACHINES),
        "fairness": _simulated(runs, "fairness"),
        "overload": _simulated(runs, "overload"),
        "policies": _simulated(runs, "policies"),
        "deadlines": "\n\n".join(_simulated(runs, name) for name in deadline_runs(runs)),
    }


def bars_table() -> str:
    """Every bar, and a second table of those that are out of reach on some kind of machine."""
    bars = (
        *BENCH_BARS, *UPDATE_BARS, *FORECAST_BARS, *SIMULATOR_BARS, *STREAMING_BARS, *RANDOM_WEIGHTS_BARS,
    )  # fmt: skip
    misses = [
        (bar.name, kind, bar.as_text(miss.limit), miss.reason)
        for bar in bars
        for kind, miss in bar.known_misses.items()
    ]
    return "\n\n".join(
        [
            table(("figure", "bar"), [(bar.name, bar.as_text()) for bar in bars]),
            table(("out of reach", "on machines with", "held to", "because"), misses),
        ]
    )


def _machine(runs: Sequence[Run], folder: str) -> str:
    """One machine's section: what it is, and all its runs."""
    machine_runs = [run for run in runs if run.folder == folder and run.name not in OTHER_PAGES]
    machine_runs.sort(key=lambda run: (ORDER.index(run.name) if run.name in ORDER else len(ORDER), run.name))
    machine = machine_runs[0].machine
    line = (
        f"Processor: {machine['processor']}; {machine['cores']} cores; "
        f"{', '.join(machine['instruction_sets'])}."
    )
    return "\n\n".join([f"## {HEADINGS[folder]}", line, *map(run_section, machine_runs)])


def run_section(run: Run) -> str:
    """One run: where its figures are from, its tables, and its notes."""
    parts = [f"### {run.title}", run.provenance, run.record.get("about", "")]
    parts += RENDERERS.get(run.name.rstrip("-0123456789"), _generic)(run)
    parts += ["\n".join(f"- {note}" for note in run.record.get("notes", ()))]
    return "\n\n".join(filter(None, parts))


def deadline_runs(runs: Sequence[Run]) -> list[str]:
    """The names of the comparisons under deadlines: of few devices, then of many, by traffic."""
    return sorted(run.name for run in runs if run.folder == "simulated" and run.name.startswith("deadlines"))


def _simulated(runs: Sequence[Run], name: str) -> str:
    run = find_run(runs, "simulated", name)
    return "\n\n".join([run.provenance, *_generic(run)])


def _generic(run: Run) -> list[str]:
    if "tables" not in run.figures:
        return RAW_RENDERERS[run.name](run)
    return [table(entry["columns"], entry["rows"]) for entry in run.figures["tables"]]


def _bench(run: Run) -> list[str]:
    """The newest run of a machine is judged by every bar; of earlier ones, the main figures are shown."""
    figures, is_newest = run.figures, run.name == "bench"
    chosen = OTHER_FIGURES if is_newest else MAIN_FIGURES
    rows = [
        (name, f"{100 * figures[key]:.3g} %" if is_share else f"{figures[key]:.2f}")
        for name, key, is_share in chosen
        if key in figures
    ]
    if fidelity := figures.get("fidelity"):
        name = f"PSNR of diffusers itself in {figures['dtype']}"
        rows.append((name, f"{fidelity['diffusers_psnr_db']:.1f} dB"))
    parts = [comparison_table(figures), _verdicts(run) if is_newest else ""]
    return [*parts, table(("other figures" if is_newest else "figure", "measured"), rows)]


def comparison_table(figures: Figures) -> str:
    """The engine beside diffusers, with ratios to the engine in parentheses."""
    ways = [name for name in WAYS if figures["mixed"].get(name)]
    ways += [name for name in ("serial_compiled",) if name not in ways and ALONE[name] in figures["batch1"]]
    ways.sort(key=list(WAYS).index)
    mixed = {name: figures["mixed"].get(name) or {} for name in ways}
    ours = figures["mixed"]["ours"]["images_per_hour"]
    alone = {name: figures["batch1"].get(ALONE.get(name, "")) for name in ways}
    rows = [
        ("latency of one image alone, s", *(_ratio(alone[name], alone["ours"], ".3f") for name in ways)),
        (
            "throughput of mixed requests, images/h",
            *(_ratio(mixed[name].get("images_per_hour"), ours, ",.0f", is_inverse=True) for name in ways),
        ),
        ("latency p50, p95 at that load, s", *(_latencies(mixed[name]) for name in ways)),
    ]
    return table(("", *(WAYS[name] for name in ways)), rows)


def _ratio(value: float | None, ours: float, form: str, *, is_inverse: bool = False) -> str:
    if value is None:
        return ""
    if value == ours:
        return f"{value:{form}}"
    ratio = ours / value if is_inverse else value / ours
    return f"{value:{form}} ({ratio:.2f})"


def _latencies(way: Figures) -> str:
    values = [way.get("p50_s"), way.get("p95_s")]
    if values == [None, None]:
        return ""
    return ", ".join("not recorded" if value is None else f"{value:.1f}" for value in values)


def _verdicts(run: Run) -> str:
    return table(VERDICT_HEADER, [verdict.cells for verdict in judge(BENCH_BARS, run.figures, run.kind)])


def _update(run: Run) -> list[str]:
    verdicts = judge(UPDATE_BARS, run.figures, run.kind)
    return [table(VERDICT_HEADER, [verdict.cells for verdict in verdicts])]


def _streaming(run: Run) -> list[str]:
    """What previews cost, and the range of the rounds."""
    figures = run.figures
    costs, shares = figures["throughput_costs"], figures["first_preview_shares"]
    rows = [
        ("images an hour, eight at a time", f"{figures['images_per_hour']:,.0f}"),
        ("the same with previews", f"{figures['images_per_hour_streamed']:,.0f}"),
        ("throughput cost of single rounds", f"{min(costs):.1%} to {max(costs):.1%}"),
        (
            "previews drawn of the two that an image asks for, eight at a time",
            f"{figures['previews_per_image']:.2f}",
        ),
        ("first preview of single images, share of the latency", f"{min(shares):.0%} to {max(shares):.0%}"),
    ]
    verdicts = judge(STREAMING_BARS, figures, run.kind)
    return [
        table(VERDICT_HEADER, [verdict.cells for verdict in verdicts]),
        table(("figure", "measured"), rows),
    ]


def _load_test(run: Run) -> list[str]:
    """`report.json` of a load test."""
    words = {True: "met", False: "missed", None: "not reachable here"}
    targets = [
        (row["name"], row["wanted"], row["got"], words[row["is_met"]]) for row in run.figures["targets"]
    ]
    return [table(("target", "required", "measured", "verdict"), targets)]


RENDERERS: dict[str, Callable[[Run], list[str]]] = {"bench": _bench}
RAW_RENDERERS: dict[str, Callable[[Run], list[str]]] = {
    "update": _update,
    "http": _load_test,
    "streaming": _streaming,
}


def newest_bench(runs: Sequence[Run]) -> Run:
    """The newest run of `safelight bench` that compares with compiled diffusers too."""
    complete = [run for run in runs if run.name == "bench" and run.figures["mixed"].get("serial_compiled")]
    return max(complete, key=lambda run: run.record["date"])


def readme_block(runs: Sequence[Run]) -> dict[str, str]:
    """The README's table, of the newest run."""
    run = newest_bench(runs)
    figures, machine = run.figures, run.machine
    commit = f"commit {run.record['commit']}" if run.record["commit"] else "commit not recorded"
    lead = (
        f"{figures['num_requests']} mixed requests (8 to 40 steps, with and without guidance) on "
        f"{machine['cores']} cores with {run.kind} in {figures['dtype']}, against diffusers on the same "
        f"weights; `{run.record['command']}`, {commit} "
        f"([all figures, the missed targets too](docs/performance.md)):"
    )
    mixed, alone = figures["mixed"], figures["batch1"]
    rows = [
        ("throughput, images/h", *(f"{mixed[name]['images_per_hour']:,.0f}" for name in WAYS)),
        ("latency p95 at that load, s", *(f"{mixed[name]['p95_s']:.1f}" for name in WAYS)),
        (
            "latency of one image alone, s",
            *(f"{alone[ALONE[name]]:.3f}" if name in ALONE else "" for name in WAYS),
        ),
    ]
    header = ("", "Safelight", "diffusers, one at a time", "the same, compiled", "diffusers, static batches")
    return {"bench": f"{lead}\n\n{table(header, rows)}"}
