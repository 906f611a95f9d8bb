"""tests/skips.py and tests/needs.py: skips are counted, and fail a run of continuous integration."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests import needs
from tests.skips import refused

pytest_plugins = "pytester"
ROOT = Path(__file__).resolve().parents[1]
TESTS = """
    import pytest

    @pytest.mark.parametrize("n", range(3))
    @pytest.mark.skip(reason="long; --long runs it")
    def test_long(n): ...

    @pytest.mark.skip(reason="no such library")
    def test_hidden(): ...

    def test_passes(): ...
"""
Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs pytest on `TESTS` with the plugin, in a process of its own and with these options."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(ROOT / "src"))))
    monkeypatch.delenv("TESTS_IN_CI", raising=False)
    pytester.makepyfile(TESTS)

    def run_pytest(*options: str, is_ci: bool) -> pytest.RunResult:
        if is_ci:
            monkeypatch.setenv("TESTS_IN_CI", "1")
        return pytester.runpytest_subprocess("-p", "tests.skips", "-p", "no:cacheprovider", *options)

    return run_pytest


@pytest.mark.parametrize("options", [(), ("--numprocesses", "1")], ids=["one process", "a worker"])
def test_a_skip_that_is_not_listed_fails_continuous_integration(run: Run, options: tuple[str, ...]) -> None:
    result = run(*options, is_ci=True)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*- 4 skipped -*",
            "    3 long; --long runs it",
            "    1 no such library",
            "FAILED: tests/skips.py does not allow this skip: no such library",
        ],
        consecutive=True,
    )


def test_elsewhere_it_is_only_counted(run: Run) -> None:
    result = run(is_ci=False)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*- 4 skipped -*", "    3 long; --long runs it", "    1 no such library"])
    result.stdout.no_fnmatch_line("FAILED*")


def test_listed_skips_pass_in_continuous_integration(run: Run) -> None:
    assert run("-k", "not hidden", is_ci=True).ret == pytest.ExitCode.OK


def test_a_reason_must_be_listed_completely() -> None:
    assert refused(["long; --long runs it, or not"]) == ["long; --long runs it, or not"]


def test_every_need_names_tests_that_exist() -> None:
    """A renamed file would run without its need being checked."""
    fixture_files = (
        "deploy/test_prometheus.py",
        "page/conftest.py",
        "service/databases.py",
        "service/quotas/test_counters.py",
    )
    fixture_source = "".join((ROOT / "tests" / file).read_text(encoding="utf-8") for file in fixture_files)
    for need in needs.NEEDS:
        for node in need.tests:
            file, _, name = node.partition("::")
            source = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert f"def {name.partition('[')[0]}" in source, node
        for fixture in need.fixtures:
            assert f"def {fixture}(" in fixture_source
        for value in need.values:
            assert f'"{value}"' in fixture_source


def test_a_missing_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    (compiler,) = (need for need in needs.NEEDS if "compiler" in need.name)
    monkeypatch.setenv("CXX", "/nowhere/g++")
    assert not compiler.is_met()
    assert needs.pytest_report_header() == [
        "a C++ compiler with Python's headers is missing: apt-get install g++ python3-dev"
    ] + [need.reason for need in needs.NEEDS if need is not compiler and not need.is_met()]


def test_what_make_makes_is_made_in_continuous_integration_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the process that starts the workers, with the environment that runs the tests."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: Any) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=0)

    missing = needs.Need("an environment", "", lambda: False, target="clients")
    assert missing.reason == "an environment is missing: make clients"
    monkeypatch.setattr(needs, "NEEDS", (missing,))
    monkeypatch.setattr(needs, "subprocess", SimpleNamespace(run=run))
    main = cast(pytest.Session, SimpleNamespace(config=SimpleNamespace()))
    worker = cast(pytest.Session, SimpleNamespace(config=SimpleNamespace(workerinput={})))
    for is_ci in (False, True):
        monkeypatch.setattr(needs, "IS_CI", is_ci)
        needs.pytest_sessionstart(worker)
        needs.pytest_sessionstart(main)
    assert [command[:3] for command in commands] == [["make", "clients", f"VENV={sys.prefix}"]]
