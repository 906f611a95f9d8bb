"""The recipe's command calls every stage with what its flags say."""

from types import ModuleType
from typing import Any

import pytest

from safelight.models.recipes.emoji import __main__ as command
from safelight.models.recipes.emoji import dit, rate, turbo

FUNCTIONS = ("run", "anneal", "unpack")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...]]]:
    """The calls of the stages' functions, which do nothing."""
    calls: list[tuple[str, tuple[Any, ...]]] = []

    def record(name: str) -> Any:
        return lambda *args: calls.append((name, args))

    command._stages(command._parser().parse_args(["data"]))  # imports the stages
    package = __import__("safelight.models.recipes.emoji", fromlist=["emoji"])
    for module in [value for value in vars(package).values() if isinstance(value, ModuleType)]:
        for function in FUNCTIONS:
            if hasattr(module, function):
                monkeypatch.setattr(module, function, record(f"{module.__name__.split('.')[-1]}.{function}"))
    return calls


@pytest.mark.parametrize("stage", command.STAGES)
def test_every_stage_is_called_once(stage: str, calls: list[tuple[str, tuple[Any, ...]]]) -> None:
    args = command._parser().parse_args([stage, "--work", "w", "--output", "o"])
    command._stages(args)[stage]()
    [(_, given)] = calls
    assert str(given[0]) == "w"


def test_the_flags_reach_the_stages(calls: list[tuple[str, tuple[Any, ...]]]) -> None:
    flags = ["--steps", "7", "--minutes", "8", "--batch", "9", "--rate", "0.3", "--native-only"]
    for stage in ("dit", "anneal", "turbo"):
        command._stages(command._parser().parse_args([stage, *flags]))[stage]()
    options = dit.TrainingOptions(7, 8.0, 9, 0.3, other_sizes=False)
    assert [(name, given[1]) for name, given in calls] == [
        ("dit.run", options),
        ("dit.anneal", options),
        ("turbo.run", options),
    ]


def test_each_stage_has_its_own_batch(calls: list[tuple[str, tuple[Any, ...]]]) -> None:
    for stage in ("dit", "turbo"):
        command._stages(command._parser().parse_args([stage]))[stage]()
    assert [given[1].batch for _, given in calls] == [dit.BATCH, turbo.BATCH]
    assert dit.BATCH != turbo.BATCH


def test_the_student_can_be_rated(calls: list[tuple[str, tuple[Any, ...]]]) -> None:
    command._stages(command._parser().parse_args(["rate", "--turbo", "--limit", "40"]))["rate"]()
    [(_, given)] = calls
    assert given[2] == rate.RatingOptions(40, native_only=False, is_turbo=True)
