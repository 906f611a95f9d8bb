"""The measurements behind docs/solvers.md: their file, docs/data/solvers.json, and the page's tables."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docs.figures.markdown import fill
from safelight.pipeline.diffusion.solvers import ALIASES, SOLVERS

HERE = Path(__file__).resolve().parent
DATA = HERE / "data" / "solvers.json"
PAGE = HERE / "solvers.md"

Curve = dict[int, tuple[int, float]]  # budget of evaluations to (evaluations used, error)
Points = list[tuple[int, float]]  # (evaluations, error)

TABLED = (10, 15, 20)
DETERMINISTIC = tuple(name for name, solver in SOLVERS.items() if solver.deterministic)
STOCHASTIC = tuple(name for name, solver in SOLVERS.items() if not solver.deterministic)


@dataclass(frozen=True)
class Measurements:
    """Everything that docs/solver_curves.py measures, rounded to five digits."""

    path_errors: Mapping[str, Mapping[str, Curve]]  # by the title of the case, and by solver
    distribution_errors: Mapping[str, Points]  # by solver
    exact_samples: int  # how many exact samples score `exact_distance`
    exact_distance: float
    orders: Mapping[str, float]  # by solver


def write_data(measurements: Measurements, path: Path = DATA) -> None:
    """Write `measurements` as JSON, one line for each curve."""
    lines = ["{", ' "path_errors": {']
    for k, (title, by_solver) in enumerate(measurements.path_errors.items()):
        lines += [f"  {json.dumps(title)}: {{", _entries(by_solver, "   ")]
        lines.append("  }" + ("," if k + 1 < len(measurements.path_errors) else ""))
    lines += [" },", ' "distribution_errors": {', _entries(measurements.distribution_errors, "  "), " },"]
    lines.append(f' "exact_samples": {measurements.exact_samples},')
    lines.append(f' "exact_distance": {measurements.exact_distance},')
    lines += [' "orders": {', _entries(measurements.orders, "  "), " }", "}"]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_data(path: Path = DATA) -> Measurements:
    data = json.loads(path.read_text(encoding="utf-8"))
    return Measurements(
        {
            title: {solver: _curve(curve) for solver, curve in by_solver.items()}
            for title, by_solver in data["path_errors"].items()
        },
        {
            solver: [(nfe, error) for nfe, error in points]
            for solver, points in data["distribution_errors"].items()
        },
        data["exact_samples"],
        data["exact_distance"],
        data["orders"],
    )


def fill_page(text: str, measurements: Measurements) -> str:
    """`text`, the page, with its tables made anew from the registry and from `measurements`."""
    blocks = {
        "registry": registry_table(),
        "errors": error_tables(measurements.path_errors),
        "distribution": distribution_table(measurements),
        "orders": order_table(measurements.orders),
    }
    for name, block in blocks.items():
        text = fill(text, name, block)
    return text


def registry_table() -> str:
    """Every solver, one row each."""
    rows = [
        "| solver | order | evaluations a step | kind | place | schedules | source | use |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, solver in SOLVERS.items():
        kind, weak = ("deterministic", "") if solver.deterministic else ("stochastic", "weak ")
        order = "none" if solver.order is None else f"{weak}{solver.order}"
        place, families = "served" if solver.served else "offline", ", ".join(solver.families)
        cells = (f"`{name}`", order, solver.evaluations, kind, place, families, solver.source, solver.use)
        rows.append(f"| {' | '.join(map(str, cells))} |")
    aliases = "; ".join(f"`{alias}` is `{name}`" for alias, name in ALIASES.items())
    return "\n".join([*rows, "", f"Aliases, which are not counted as solvers: {aliases}."])


def error_tables(path_errors: Mapping[str, Mapping[str, Curve]]) -> str:
    """A table for each budget: solvers down, cases across, the smallest error of each case in bold."""
    parts = []
    for nfe in TABLED:
        parts.append(f"At most {nfe} evaluations (in brackets: those used, if fewer):\n")
        parts.append(f"| solver | {' | '.join(path_errors)} |\n|---|{'---|' * len(path_errors)}")
        smallest = [min(curve[nfe][1] for curve in by_solver.values()) for by_solver in path_errors.values()]
        for solver in DETERMINISTIC:
            cells = []
            for by_solver, best in zip(path_errors.values(), smallest, strict=True):
                used, error = by_solver[solver][nfe]
                text = _three_digits(error)
                cells.append(
                    (f"**{text}**" if error == best else text) + ("" if used == nfe else f" ({used})")
                )
            parts.append(f"| `{solver}` | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts[:-1])


def distribution_table(measurements: Measurements) -> str:
    rows = ["| solver | schedule | evaluations: distance |", "|---|---|---|"]
    for solver, points in measurements.distribution_errors.items():
        schedule = "vp" if "vp" in SOLVERS[solver].families else "ve"
        rows.append(
            f"| `{solver}` | {schedule} | {', '.join(f'{nfe}: {error:.4f}' for nfe, error in points)} |"
        )
    score = f"As many exact samples ({measurements.exact_samples:,}) score {measurements.exact_distance:.4f}."
    return "\n".join([*rows, "", score])


def order_table(orders: Mapping[str, float]) -> str:
    rows = ["| solver | order | measured |", "|---|---|---|"]
    return "\n".join(
        [*rows, *(f"| `{name}` | {SOLVERS[name].order} | {slope:.2f} |" for name, slope in orders.items())]
    )


def _entries(values: Mapping[str, object], indent: str) -> str:
    """The entries of a JSON object, a line each."""
    return ",\n".join(f"{indent}{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())


def _curve(curve: Mapping[str, Any]) -> Curve:
    return {int(budget): (used, error) for budget, (used, error) in curve.items()}


def _three_digits(error: float) -> str:
    return "over 10" if not error < 10.0 else f"{error:.3f}" if error >= 0.01 else f"{error:.4f}"
