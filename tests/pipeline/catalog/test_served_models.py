"""What a served model offers: its family's defaults, its folder's schedule, and the solvers of both."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from safelight.pipeline.catalog.model_info import check_params
from safelight.pipeline.catalog.planning import plan_request
from safelight.pipeline.catalog.served_models import UnknownModel, find_model
from safelight.pipeline.diffusion.schedules import Flow, VariancePreserving
from safelight.pipeline.diffusion.solvers import ALIASES, SERVED, make_plan
from safelight.pipeline.diffusion.spacing import SPACINGS
from safelight.pipeline.errors import InvalidParams
from tests.pipeline.parts import model, params


@pytest.mark.parametrize("factor", [2, 4])
def test_an_autoencoder_with_unequal_scales_cannot_edit(tmp_path: Path, factor: int) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(model().path, folder)
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"upsampling_scaling_factor": factor}))
    assert find_model(str(folder)).has_edits is (factor == 2)


def test_the_embedded_model_has_its_familys_defaults() -> None:
    emoji = find_model("emoji-128")
    assert (emoji.id, emoji.family, emoji.path.name) == ("emoji-128", "pixart-clip", "emoji-128")
    assert (emoji.num_steps, emoji.guidance_scale) == (20, 5.0)
    assert (emoji.solver, emoji.timestep_spacing) == ("dpmpp_2m", "trailing")
    assert (emoji.schedule, emoji.prediction, emoji.native_size) == (Flow(2.0), "flow", (128, 128))
    assert emoji.spacings == tuple(SPACINGS) and emoji.labels is None
    assert "Apache-2.0" in emoji.licence


def test_the_few_step_student_is_a_variant_with_limits_of_its_own() -> None:
    base, turbo = find_model("emoji-128"), find_model("emoji-128-turbo")
    assert (turbo.id, turbo.path, turbo.read_options.variant) == ("emoji-128-turbo", base.path, "turbo")
    assert (turbo.num_steps, turbo.max_steps, turbo.solvers) == (4, 4, ("euler", "ddim"))
    assert (turbo.guidance_scale, turbo.guidance_range, turbo.sizes) == (1.0, (1.0, 1.0), base.sizes)
    for change in ({"num_steps": 5}, {"guidance_scale": 1.5}, {"solver": "dpmpp_2m"}):
        request = params(num_steps=4, guidance_scale=1.0, solver="euler", width=128, height=128)
        check_params(request, turbo)
        with pytest.raises(InvalidParams) as refusal:
            check_params(replace(request, **change), turbo)
        assert refusal.value.param == next(iter(change))


def test_a_model_is_known_by_its_name_or_its_folders(tmp_path: Path) -> None:
    assert (find_model("tiny").id, find_model("tiny").licence) == ("tiny", "none: random weights")
    shutil.copytree(model().path, tmp_path / "mine")
    mine = find_model(str(tmp_path / "mine"))
    assert (mine.id, mine.licence, mine.path) == ("mine", "see the folder", (tmp_path / "mine").resolve())


def test_only_solvers_that_the_schedule_allows_are_offered(tmp_path: Path) -> None:
    """On flows the reverse SDE is singular, so Euler-Maruyama is not offered there."""
    assert {*SERVED} - {*model().solvers} == {"euler_maruyama"}
    assert {*ALIASES} < {*model().solvers} and "langevin" not in model().solvers
    folder = tmp_path / "noise"
    shutil.copytree(model().path, folder)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDPMScheduler"}))
    noise = find_model(str(folder))
    assert (noise.schedule, noise.prediction, noise.id) == (VariancePreserving("linear"), "epsilon", "noise")
    assert {*noise.solvers} == {*SERVED, *ALIASES}


def test_a_request_is_planned_as_it_says() -> None:
    p = params(solver="ddim", num_steps=5, timestep_spacing="karras", eta=0.25)
    plan = make_plan("ddim", model().schedule, model().prediction, 5, spacing="karras", eta=0.25)
    assert plan_request(p, model()) == plan


def test_a_folder_that_cannot_be_served_says_why(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="model_index.json is missing"):
        find_model(str(tmp_path))
