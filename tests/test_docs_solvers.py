"""docs/solvers.md: its tables are those of the registry and of docs/data/solvers.json, whose figures hold.

Each run measures a part of the figures again: in every panel two solvers, so that every solver has its turn;
one distance of every solver in the table of distributions; and all orders of convergence.
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from docs import solver_curves as curves
from docs import solver_plot, solver_tables
from safelight.pipeline.diffusion.solvers import SOLVERS
from safelight.pipeline.diffusion.spacing import SPACINGS

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "solvers.md").read_text(encoding="utf-8")
DATA = solver_tables.read_data()
EMOJI_CURVES = DOCS.parent / "models/weights/emoji-128/curves.json"
SEED = 2026
SIGNIFICANT = 2e-5  # the data have five digits
# Rounding differs between processors and numbers of threads, and stiff settings amplify it.
TOLERANCE = 1e-3


def path_sample() -> list[tuple[int, str, int]]:
    """For each case, two solvers with a budget of evaluations each; every solver once."""
    rng = random.Random(SEED)  # noqa: S311
    solvers = rng.sample(solver_tables.DETERMINISTIC, len(solver_tables.DETERMINISTIC))
    return [
        (case, solver, rng.choice(solver_tables.TABLED))
        for case in range(len(curves.CASES))
        for solver in solvers[2 * case : 2 * case + 2]
    ]


def distribution_sample() -> list[tuple[str, int]]:
    """For each solver, the number of one of its first points."""
    rng = random.Random(SEED)  # noqa: S311
    return [
        (solver, 0 if solver == "langevin" else rng.randrange(3))  # its second takes a thousand evaluations
        for solver in DATA.distribution_errors
    ]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the measurement; for so small tensors, more threads only wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def path_errors() -> dict[int, curves.PathErrors]:
    """By the number of the case, filled as the tests ask: each has a reference solution to compute."""
    return {}


def test_the_tables_are_those_of_the_registry_and_of_the_data() -> None:
    assert solver_tables.fill_page(PAGE, DATA) == PAGE, "python docs/solver_curves.py --tables"


def test_the_figure_shows_the_data() -> None:
    with Image.open(solver_plot.FIGURE) as figure:
        assert isinstance(figure, PngImageFile)
        assert figure.text[solver_plot.DIGEST_KEY] == solver_plot.digest(), "python docs/solver_curves.py"
    assert set(solver_plot.STYLES) == set(SOLVERS)


def test_the_data_are_read_as_they_were_written(tmp_path: Path) -> None:
    solver_tables.write_data(DATA, tmp_path / "solvers.json")
    assert (tmp_path / "solvers.json").read_bytes() == solver_tables.DATA.read_bytes()
    assert solver_tables.read_data(tmp_path / "solvers.json") == DATA


def test_every_solver_is_measured_in_every_case() -> None:
    assert list(DATA.path_errors) == [case.title for case in curves.CASES]
    for by_solver in DATA.path_errors.values():
        assert tuple(by_solver) == solver_tables.DETERMINISTIC == tuple(DATA.orders)
        for solver, curve in by_solver.items():
            assert set(solver_tables.TABLED) <= set(curve) <= set(curves.NFES), solver
    assert set(solver_tables.STOCHASTIC) <= set(DATA.distribution_errors)
    for solver, points in DATA.distribution_errors.items():
        assert len(points) == len(curves.distribution_setting(solver)[1]), solver


def test_the_sample_has_every_solver_and_every_case() -> None:
    cases, solvers, _ = zip(*path_sample(), strict=True)
    assert set(cases) == set(range(len(curves.CASES)))
    assert sorted(solvers) == sorted(solver_tables.DETERMINISTIC)


@pytest.mark.parametrize(("case", "solver", "budget"), path_sample())
def test_a_documented_error_is_measured(
    path_errors: dict[int, curves.PathErrors], case: int, solver: str, budget: int
) -> None:
    if case not in path_errors:
        path_errors[case] = curves.PathErrors(curves.CASES[case])
    setting = curves.CASES[case]
    plan = curves.affordable(solver, setting.schedule, setting.spacing, budget)
    assert plan is not None
    used, error = DATA.path_errors[setting.title][solver][budget]
    assert plan.nfe == used
    assert path_errors[case].error(plan) == pytest.approx(error, rel=TOLERANCE)


@pytest.mark.parametrize(("solver", "point"), distribution_sample())
def test_a_documented_distance_of_distributions_is_measured(solver: str, point: int) -> None:
    schedule, step_counts = curves.distribution_setting(solver)
    nfe, distance = curves.distribution_error(solver, schedule, step_counts[point])
    expected_nfe, expected_distance = DATA.distribution_errors[solver][point]
    assert nfe == expected_nfe and expected_distance == pytest.approx(distance, rel=TOLERANCE)


def test_the_documented_distance_of_exact_samples_is_measured() -> None:
    assert DATA.exact_samples == curves.NUM_DRAWS
    assert curves.distribution_floor() == pytest.approx(DATA.exact_distance, rel=SIGNIFICANT)


@pytest.mark.parametrize("solver", solver_tables.DETERMINISTIC)
def test_the_documented_order_is_measured(solver: str) -> None:
    assert curves.measured_order(solver) == pytest.approx(DATA.orders[solver], abs=0.005)


def test_what_the_page_says_of_its_tables_is_true() -> None:
    """The sentences under the tables."""
    errors = {
        title: {solver: {n: curve[n][1] for n in solver_tables.TABLED} for solver, curve in by_solver.items()}
        for title, by_solver in DATA.path_errors.items()
    }
    for panel in errors.values():
        for solver in ("dpmpp_2m", "unipc_2"):
            assert all(panel[solver][n] < panel["euler"][n] for n in solver_tables.TABLED)
    stiff = errors["VP, w = 7.5, trailing"]
    assert f"(errors up to {max(e[10] for e in stiff.values()):.1f}, Euler {stiff['euler'][10]:.2f})" in PAGE
    shift_3, shift_1 = errors["flow, shift 3, w = 4.5, trailing"], errors["flow, shift 1, w = 7, trailing"]
    pairs = [f"{panel['dpmpp_2m'][20]:.3f} and {panel['unipc_2'][20]:.3f}" for panel in (shift_3, shift_1)]
    assert f"{', '.join(pairs)} at 20 evaluations of the guided flows" in PAGE
    for n in (15, 20):
        assert max(shift_3["plms"][n], shift_3["ipndm"][n]) < min(
            shift_3[s][n] / 2 for s in ("dpmpp_2m", "unipc_2", "unipc_3", "dpmpp_3m")
        )
    assert 1.8 < shift_1["unipc_2"][20] / shift_1["plms"][20] < 2.2
    assert all(panel["plms"][10] > panel["euler"][10] for panel in (shift_3, shift_1))


def test_the_two_best_solvers_draw_equally_well() -> None:
    points = json.loads(EMOJI_CURVES.read_text(encoding="utf-8"))["points"]
    best, other = points["dpmpp_2m"]["20"], points["unipc_2"]["20"]
    assert best["hits"] == other["hits"]
    assert f"both draw {best['rate']:.0%} of {best['count']} names right".replace("%", " %") in PAGE


def test_the_example_prints_its_comment(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/solvers.md", "exec"), {})  # noqa: S102
    (expected,) = re.findall(r"print\(f.*# (\S+)$", code, re.MULTILINE)
    assert capsys.readouterr().out.splitlines()[-1] == expected


def test_every_spacing_is_explained() -> None:
    section = PAGE[PAGE.index("## Spacings") : PAGE.index("## What is not served")]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(SPACINGS)


def test_the_fast_network_equals_the_oracle() -> None:
    mixtures = [curves.image_like(seed) for seed in range(2)]
    x = torch.randn(2, 5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for alpha, sigma in ((0.0, 1.0), (0.7, 0.7), (1.0, 1e-3)):
        x0 = curves.posterior_mean(curves.stack(mixtures), x, alpha, sigma)
        exact = torch.stack(
            [mixture.x0(points, alpha, sigma) for mixture, points in zip(mixtures, x, strict=True)]
        )
        torch.testing.assert_close(x0, exact, rtol=1e-10, atol=1e-10)
