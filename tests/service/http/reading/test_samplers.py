"""Solvers and spacings by the names of other servers."""

import pytest

from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.diffusion.solvers import ALIASES, SERVED
from safelight.pipeline.diffusion.spacing import SPACINGS as ALL_SPACINGS
from safelight.service.http.reading.samplers import SOLVERS, SPACINGS, find_sampler, find_spacing

EMBEDDED = find_model("emoji-128")


def test_every_name_means_a_solver_or_spacing_that_exists() -> None:
    assert set(SOLVERS.values()) <= {*SERVED, *ALIASES}
    assert set(SPACINGS.values()) <= {*ALL_SPACINGS, ""}


@pytest.mark.parametrize(
    ("name", "solver", "spacing"),
    [
        ("Euler", "euler", ""),
        ("Euler a", "euler_ancestral", ""),
        ("euler_a", "euler_ancestral", ""),
        ("DPM++ 2M", "dpmpp_2m", ""),
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("dpm++2mv2", "dpmpp_2m", ""),
        ("dpmpp_2m", "dpmpp_2m", ""),
        ("DPM++ 2M SDE", "sde_dpmpp_2m", ""),
        ("k_heun", "heun", ""),
        ("UniPC", "unipc_2", ""),
        ("uni_pc_bh2", "unipc_2", ""),
        ("DPMSolverMultistepScheduler", "dpmpp_2m", ""),
        ("EulerAncestralDiscreteScheduler", "euler_ancestral", ""),
        ("FlowMatchEulerDiscreteScheduler", "euler", ""),
        ("ddim_trailing", "ddim", ""),
        ("UNIPC_3", "unipc_3", ""),
    ],
)
def test_a_sampler_is_a_solver(name: str, solver: str, spacing: str) -> None:
    assert find_sampler(name, (*SERVED, *ALIASES)) == (solver, spacing)


@pytest.mark.parametrize("name", ["lcm", "", "dpm adaptive", "++", "Karras", "x" * 1000])
def test_a_sampler_without_a_counterpart(name: str) -> None:
    assert find_sampler(name, EMBEDDED.solvers) is None


def test_a_solver_that_the_model_does_not_have_is_none() -> None:
    assert find_sampler("Heun", ("euler",)) is None


@pytest.mark.parametrize(
    ("name", "spacing"),
    [("Karras", "karras"), ("trailing", "trailing"), ("SGM Uniform", ""), ("Automatic", ""), ("beta", None)],
)
def test_a_noise_schedule_is_a_spacing(name: str, spacing: str | None) -> None:
    assert find_spacing(name, EMBEDDED.spacings) == spacing
