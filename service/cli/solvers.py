"""`safelight solvers`: lists the solvers and their uses."""

import argparse
import json

from safelight.pipeline.diffusion.solvers import ALIASES, SOLVERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON array on stdout")


def run(args: argparse.Namespace) -> int:
    if args.json:
        print(json.dumps([_describe(name) for name in SOLVERS]))
    else:
        print("\n".join(map(_as_text, SOLVERS)))
    return 0


def _aliases(name: str) -> list[str]:
    return [alias for alias, solver in ALIASES.items() if solver == name]


def _describe(name: str) -> dict[str, object]:
    solver = SOLVERS[name]
    return {
        "name": name,
        "aliases": _aliases(name),
        "order": solver.order,
        "convergence": "pathwise" if solver.deterministic else "weak",
        "evaluations_per_step": solver.evaluations,
        "deterministic": solver.deterministic,
        "served": solver.served,
        "schedules": list(solver.families),
        "source": solver.source,
        "use": solver.use,
    }


def _order(name: str) -> str:
    solver = SOLVERS[name]
    if solver.order is None:
        return "no order"
    return f"{'order' if solver.deterministic else 'weak order'} {solver.order}"


def _as_text(name: str) -> str:
    solver = SOLVERS[name]
    facts = (
        _order(name),
        f"{solver.evaluations} evaluation{'s' * (solver.evaluations > 1)} a step",
        "deterministic" if solver.deterministic else "stochastic",
        "served" if solver.served else "offline",
        f"on {', '.join(solver.families)}",
    )
    lines = [f"{name:17} {'; '.join(facts)}", f"{'':17} {solver.use} [{solver.source}]"]
    if aliases := _aliases(name):
        lines.append(f"{'':17} aliases: {', '.join(aliases)}")
    return "\n".join(lines)
