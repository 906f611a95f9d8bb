"""The table at the end of a run, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from tests.mutants.catalogue import Mutant
from tests.mutants.results import INVALID, Verdict

MIN_SCORE = 0.95


@dataclass(frozen=True, slots=True)
class Outcome:
    """A mutant with its verdict."""

    mutant: Mutant
    verdict: Verdict


def summary(outcomes: Sequence[Outcome]) -> str:
    """Caught and all mutants of every list, the seconds that they took, and the reasons of survivors."""
    lines = [f"{'list':<16}{'caught':>12}{'seconds':>10}"]
    for group, rows in groupby(outcomes, key=lambda outcome: outcome.mutant.group):
        lines.append(_line(group, list(rows)))
    lines.append(_line("all", outcomes))
    for outcome in outcomes:
        if outcome.mutant.survives and not outcome.verdict.is_caught:
            lines.append(f"survives: {outcome.mutant.title}: {outcome.mutant.survives}")
    return "\n".join(lines)


def faults(outcomes: Sequence[Outcome]) -> list[str]:
    """Why the run fails: too few are caught, or a mutant is not as its list says."""
    lines = []
    for outcome in outcomes:
        mutant, verdict = outcome.mutant, outcome.verdict
        if verdict.verdict == INVALID:
            lines.append(f"{mutant.title}: its tests do not pass without it, or are not found")
        elif mutant.survives and verdict.is_caught:
            lines.append(f"{mutant.title}: it is caught now; remove `survives`")
        elif not mutant.survives and not verdict.is_caught:
            lines.append(f"{mutant.title}: no test of {', '.join(mutant.tests)} fails")
    if _score(outcomes) < MIN_SCORE:
        lines.append(f"{_score(outcomes):.1%} are caught, at least {MIN_SCORE:.0%} are required")
    return lines


def _line(name: str, outcomes: Sequence[Outcome]) -> str:
    caught = sum(outcome.verdict.is_caught for outcome in outcomes)
    seconds = sum(outcome.verdict.seconds for outcome in outcomes)
    return f"{name:<16}{f'{caught} of {len(outcomes)}':>12}{seconds:>10.0f}{_score(outcomes):>8.0%}"


def _score(outcomes: Sequence[Outcome]) -> float:
    return sum(outcome.verdict.is_caught for outcome in outcomes) / len(outcomes)
