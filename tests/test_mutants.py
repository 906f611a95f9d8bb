"""The lists of mutants fit the tree: each changes one place, compiles, and names tests that exist."""

import ast
from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest

from tests.mutants.catalogue import ROOT, InvalidMutant, Mutant, load_mutants
from tests.mutants.results import CAUGHT, SURVIVED, TIMED_OUT, Verdict
from tests.mutants.summary import Outcome, faults, summary

MIN_MUTANTS = 120
# Packages and modules whose tests are tried.
AREAS = (
    "loadtests",
    "models/autoencoders",
    "models/checkpoints",
    "models/families",
    "models/packed",
    "models/text",
    "pipeline/assembly",
    "pipeline/capacity/fleet",
    "pipeline/capacity",
    "pipeline/catalog",
    "pipeline/diffusion/guidance.py",
    "pipeline/diffusion/noise.py",
    "pipeline/diffusion/prediction.py",
    "pipeline/diffusion/schedules.py",
    "pipeline/diffusion/solvers",
    "pipeline/diffusion/spacing.py",
    "pipeline/engine/admission.py",
    "pipeline/engine/batch.py",
    "pipeline/engine/engine.py",
    "pipeline/engine/image_decoder.py",
    "pipeline/engine/image_files.py",
    "pipeline/engine/metering.py",
    "pipeline/engine/plan_cache.py",
    "pipeline/engine/runner.py",
    "pipeline/evaluation",
    "pipeline/flops",
    "pipeline/params.py",
    "pipeline/scheduling",
    "service/database",
    "service/dispatcher.py",
    "service/errors.py",
    "service/http/access.py",
    "service/http/image_files.py",
    "service/http/image_links.py",
    "service/http/mcp_server.py",
    "service/http/public_url.py",
    "service/http/readiness.py",
    "service/http/request_body.py",
    "service/http/translation.py",
    "service/http/validation.py",
    "service/http/sdapi",
    "service/image_store",
    "service/keys",
    "service/quotas",
    "service/ray_serve",
    "service/settings.py",
    "service/stages",
    "service/telemetry",
    "service/usage",
)


def test_the_lists_are_long_and_reach_every_area() -> None:
    mutants = load_mutants()
    assert len(mutants) >= MIN_MUTANTS
    assert not [title for title, count in Counter(mutant.title for mutant in mutants).items() if count > 1]
    files = {mutant.file for mutant in mutants}
    assert not [area for area in AREAS if not any(file.startswith(area) for file in files)]


@pytest.mark.parametrize("group", sorted({mutant.group for mutant in load_mutants()}))
def test_a_mutant_changes_one_place_and_compiles(group: str) -> None:
    for mutant in load_mutants():
        if mutant.group == group:
            text = (ROOT / mutant.file).read_text(encoding="utf-8")
            assert ast.dump(ast.parse(mutant.apply(text))) != ast.dump(ast.parse(text)), mutant.title


def test_the_tests_of_a_mutant_exist() -> None:
    for mutant in load_mutants():
        assert mutant.tests, mutant.title
        for test in mutant.tests:
            file, _, name = test.partition("::")
            assert not name or name.partition("[")[0] in _functions(ROOT / file), f"{mutant.title}: {test}"


@lru_cache
def _functions(path: Path) -> frozenset[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return frozenset(node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def mutant_with(survives: str | None = None) -> Mutant:
    return Mutant("list", "name", "file.py", "a", "b", ("tests/test_mutants.py",), survives)


@pytest.mark.parametrize("text", ["", "a = a"])
def test_a_change_of_no_place_or_of_two_is_refused(text: str) -> None:
    with pytest.raises(InvalidMutant, match="list/name: the old text occurs . times in file.py, not once"):
        mutant_with().apply(text)


@pytest.mark.parametrize(
    ("verdict", "survives", "fault"),
    [
        (CAUGHT, None, None),
        (TIMED_OUT, None, None),
        (CAUGHT, "a reason", "list/name: it is caught now; remove `survives`"),
        (SURVIVED, None, "list/name: no test of tests/test_mutants.py fails"),
        (SURVIVED, "a reason", None),
        ("INVALID", None, "list/name: its tests do not pass without it, or are not found"),
    ],
)
def test_a_mutant_that_is_not_as_its_list_says_fails_the_run(
    verdict: str, survives: str | None, fault: str | None
) -> None:
    caught = Outcome(mutant_with(), Verdict(CAUGHT, 1.0))
    outcomes = [Outcome(mutant_with(survives), Verdict(verdict, 2.0)), *[caught] * 99]
    assert faults(outcomes) == ([] if fault is None else [fault])


def test_under_95_percent_fail_the_run() -> None:
    caught, survived = Verdict(CAUGHT, 1.0), Verdict(SURVIVED, 2.0)
    outcomes = [Outcome(mutant_with(), caught)] * 94 + [Outcome(mutant_with("a reason"), survived)] * 6
    assert faults(outcomes) == ["94.0% are caught, at least 95% are required"]
    assert faults(outcomes[:-1] + [Outcome(mutant_with(), caught)]) == []
    lines = summary(outcomes).splitlines()
    assert lines[1].split() == ["list", "94", "of", "100", "106", "94%"]
    assert lines[-1] == "survives: list/name: a reason"
