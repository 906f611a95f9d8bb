"""The steps of a change of models, without Ray; tests/e2e/test_model_changes.py makes changes for real."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from safelight.pipeline.catalog.served_models import find_model
from safelight.service.errors import ChangeFailed, InvalidRequest
from safelight.service.http.model_changes import ModelToAdd
from safelight.service.live_changes import LiveChanges, ModelChange, Served
from safelight.service.settings import Settings
from safelight.service.stage_sets import StageSet, plan_stages
from tests.tiny_models import write_tiny_model

SETTINGS = Settings(model="tiny")
LISTENER = Path("/nowhere/http.sock")
Step = tuple[str, ...]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=1)


@pytest.fixture(scope="module")
def served(other: Path) -> Served:
    return plan_stages([find_model("tiny"), find_model(str(other))], SETTINGS)


class RecordedChange(ModelChange):
    """Records what is deployed and waited for. A step that `failing` names raises."""

    def __init__(self, served: Served, failing: Step = ()) -> None:
        super().__init__(SETTINGS, "app", LISTENER, served)
        self.steps: list[Step] = []
        self._failing = failing

    def _take(self, *step: str) -> None:
        self.steps.append(step)
        if step == self._failing:
            self._failing = ()
            raise RuntimeError("Traceback:\nValueError: the disk is full")

    def _deploy(self, served: Sequence[StageSet], others: Sequence[StageSet] = ()) -> None:
        names = [stages.denoise for stages in served]
        running = {name for stages in (*served, *others) for name in stages.deployments}
        self._take("deploy", ",".join(names), ",".join(sorted(running)))

    def _draw_warm_up_image(self, stages: StageSet) -> None:
        self._take("warm up", stages.denoise)

    def _wait_for_retired_images(self) -> None:
        self._take("wait")


SHARED = "TextEncoder,VaeDecoder"


def test_a_model_is_served_when_it_has_drawn_an_image(served: Served, other: Path) -> None:
    change = RecordedChange(served[:1])
    assert change.add(ModelToAdd(model=str(other))) == "other"
    both = "Denoiser,Denoiser-other"
    assert change.steps == [
        ("deploy", "Denoiser", f"{both},{SHARED}"),
        ("warm up", "Denoiser-other"),
        ("deploy", both, f"{both},{SHARED}"),
        ("wait",),
        ("deploy", both, f"{both},{SHARED}"),
    ]


def test_a_new_version_takes_the_place_and_the_old_one_ends_after_its_images(
    served: Served, other: Path
) -> None:
    change = RecordedChange(served)
    assert change.add(ModelToAdd(model=str(other))) == "other"
    old, new = "Denoiser,Denoiser-other", "Denoiser,Denoiser-other-2"
    everything = f"Denoiser,Denoiser-other,Denoiser-other-2,{SHARED}"
    assert change.steps == [
        ("deploy", old, everything),
        ("warm up", "Denoiser-other-2"),
        ("deploy", new, everything),
        ("wait",),
        ("deploy", new, f"{new},{SHARED}"),
    ]


def test_a_removed_model_is_refused_first_and_ends_after_its_images(served: Served) -> None:
    change = RecordedChange(served)
    assert change.remove("other") == "other"
    assert change.steps == [
        ("deploy", "Denoiser", f"Denoiser,Denoiser-other,{SHARED}"),
        ("wait",),
        ("deploy", "Denoiser", f"Denoiser,{SHARED}"),
    ]


@pytest.mark.parametrize(
    "failing",
    [("deploy", "Denoiser", f"Denoiser,Denoiser-other,{SHARED}"), ("warm up", "Denoiser-other")],
)
def test_a_model_that_cannot_draw_leaves_the_service_as_it_was(
    served: Served, other: Path, failing: Step
) -> None:
    change = RecordedChange(served[:1], failing)
    answer = change.add(ModelToAdd(model=str(other)))
    assert isinstance(answer, ChangeFailed)
    assert str(answer) == "other was not added: the disk is full"
    assert change.steps[-2:] == [failing, ("deploy", "Denoiser", f"Denoiser,{SHARED}")]


def test_what_cannot_be_served_is_refused_before_anything_is_deployed(
    served: Served, other: Path, tmp_path: Path
) -> None:
    broken = write_tiny_model(tmp_path / "broken", seed=2)
    (broken / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    renamed = plan_stages([find_model("tiny"), find_model(str(other), served_name="shop")], SETTINGS)
    for sets, request, complaint in (
        (served, ModelToAdd(model="/nowhere"), "neither a folder"),
        (served, ModelToAdd(model=str(broken)), "diffusion_pytorch_model.safetensors"),
        (served, ModelToAdd(model=str(other), default_steps="999"), "default_steps must be between"),
        (served, ModelToAdd(model=str(other), served_name="a b"), "served_name must be"),
        (renamed, ModelToAdd(model="tiny", served_name="other"), "other is a name of shop"),
    ):
        change = RecordedChange(sets)
        answer = change.add(request)
        assert isinstance(answer, InvalidRequest) and complaint in str(answer)
        assert (answer.status, answer.param, change.steps) == (400, "model", [])


async def test_the_only_model_is_not_removed(served: Served) -> None:
    changes = LiveChanges(SETTINGS, "app", LISTENER, lambda: served[:1])
    with pytest.raises(ChangeFailed, match="tiny is the only model; add another"):
        await changes.remove("tiny")
