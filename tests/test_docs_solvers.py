"""docs/solvers.md agrees with the registry, and with the measurements of docs/solver_curves.py."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from safelight.pipeline.diffusion.solvers import SOLVERS
from safelight.pipeline.diffusion.spacing import SPACINGS

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "solvers.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def curves() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("solver_curves", DOCS / "solver_curves.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name], path = module, list(sys.path)  # a dataclass looks its module up
    spec.loader.exec_module(module)
    sys.path[:] = path
    yield module
    del sys.modules[spec.name]


def block(name: str) -> str:
    text: str
    (text,) = re.findall(rf"<!-- generated: {name} -->\n\n(.*?)\n\n<!-- end -->", PAGE, re.DOTALL)
    return text


def rows(table: str) -> dict[str, list[str]]:
    """The cells of the rows that begin with a solver; the last row where a solver has several."""
    return {
        cells[0].strip("`"): cells[1:]
        for line in table.splitlines()
        if (cells := line.strip("| ").split(" | "))[0].startswith("`")
    }


def test_the_table_of_solvers_is_the_registry(curves: ModuleType) -> None:
    assert block("registry") == curves.registry_table(), "python docs/solver_curves.py --registry"


def test_the_example_prints_its_comment(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/solvers.md", "exec"), {})  # noqa: S102
    (expected,) = re.findall(r"print\(f.*# (\S+)$", code, re.MULTILINE)
    assert capsys.readouterr().out.splitlines()[-1] == expected


def test_every_spacing_is_explained() -> None:
    section = PAGE[PAGE.index("## Spacings") : PAGE.index("## What is not served")]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(SPACINGS)


def test_every_solver_is_measured(curves: ModuleType) -> None:
    assert (
        set(rows(block("errors")))
        == set(rows(block("orders")))
        == {name for name in SOLVERS if SOLVERS[name].deterministic}
    )
    assert set(rows(block("distribution"))) >= {name for name in SOLVERS if not SOLVERS[name].deterministic}
    assert set(curves.STYLES) == set(SOLVERS)


@pytest.mark.parametrize("case", [0, 3, 5])
def test_the_documented_errors_are_measured(curves: ModuleType, case: int) -> None:
    path_errors = curves.PathErrors(curves.CASES[case])
    tables = block("errors").split("At most ")[1:]
    for solver in ("dpmpp_2m", "unipc_2", "heun", "plms"):
        for nfe, table in zip(curves.TABLED, tables, strict=True):
            cell = rows(table)[solver][case].replace("*", "").split()[0]
            plan = curves.affordable(solver, curves.CASES[case].schedule, curves.CASES[case].spacing, nfe)
            assert path_errors.error(plan) == pytest.approx(float(cell), rel=0.05), solver


def test_the_documented_orders_are_measured(curves: ModuleType) -> None:
    for solver, (_, order) in rows(block("orders")).items():
        assert curves.measured_order(solver) == pytest.approx(float(order), abs=0.02), solver


def test_the_fast_network_equals_the_oracle(curves: ModuleType) -> None:
    mixtures = [curves.image_like(seed) for seed in range(2)]
    x = torch.randn(2, 5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for alpha, sigma in ((0.0, 1.0), (0.7, 0.7), (1.0, 1e-3)):
        x0 = curves.posterior_mean(curves.stack(mixtures), x, alpha, sigma)
        exact = torch.stack(
            [mixture.x0(points, alpha, sigma) for mixture, points in zip(mixtures, x, strict=True)]
        )
        torch.testing.assert_close(x0, exact, rtol=1e-10, atol=1e-10)
