"""`safelight eval`: what it counts, how it resumes, and what it refuses; on random weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safelight.models.evaluation.gallery import Gallery, GalleryEntry, shrink_renders
from safelight.models.find_checkpoint import find_checkpoint
from safelight.pipeline.evaluation.prompts import Prompt, write_prompts
from safelight.pipeline.evaluation.renderer import Renderer
from safelight.pipeline.params import GenerationParams
from safelight.service import cli

BACKGROUNDS = {"white": (255, 255, 255), "blue": (50, 110, 210)}
PROMPTS = (
    Prompt("red apple", ("1f34e",)),
    Prompt("flat rocket", ("1f680",), "flat"),
    Prompt("rocket on blue", ("1f680",), background="blue"),
)


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a gallery of two images and a set of prompts beside its weights."""
    folder = tmp_path_factory.mktemp("examined") / "tiny"
    shutil.copytree(find_checkpoint("tiny").folder, folder)
    rgba = np.zeros((2, 64, 64, 4), np.uint8)
    rgba[0, 16:48, 16:48] = (200, 30, 30, 255)
    rgba[1, 16:48, 16:48] = (90, 90, 90, 255)
    entries = (
        GalleryEntry("1f34e", "red apple", ("fruit",), "3d", False, True),
        GalleryEntry("1f680", "rocket", ("space",), "flat", False, True),
    )
    Gallery(entries, shrink_renders(rgba), BACKGROUNDS).save(folder)
    write_prompts(folder / "prompts" / "things.jsonl", PROMPTS)
    return folder


def report(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert cli.main(["eval", *argv, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    result: dict[str, Any] = json.loads(out)
    return result


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line on stderr with which `argv` is refused."""
    assert cli.main(["eval", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    return line


def test_the_models_prompt_sets_are_rated(capsys: pytest.CaptureFixture[str], examined: Path) -> None:
    result = report(
        capsys, "--model", str(examined), "--steps", "2", "--solver", "euler", "--guidance-scale", "3"
    )
    assert (result["model"], result["num_inference_steps"], result["solver"], result["guidance_scale"]) == (
        "tiny",
        2,
        "euler",
        3.0,
    )
    assert result["seconds"] > 0
    things = result["sets"]["things"]
    assert things["prompts"] == 3
    assert {name: things[name]["count"] for name in things if name != "prompts"} == {
        "concept_top1": 3,
        "concept_top5": 3,
        "style_accuracy": 1,
        "concept_and_style": 1,
        "background_accuracy": 1,
        "ceiling": 3,
        "floor": 3,
    }
    for name in things.keys() - {"prompts"}:
        assert things[name]["low"] <= things[name]["rate"] <= things[name]["high"]
    assert things["concept_top5"]["rate"] == 1.0  # the gallery has only two images
    assert things["ceiling"]["rate"] == 1.0


@pytest.mark.parametrize(("flags", "first_seed"), [((), 0), (("--seed", "40"), 40)])
def test_every_prompt_of_a_set_has_the_next_seed(
    capsys: pytest.CaptureFixture[str],
    examined: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
    first_seed: int,
) -> None:
    rendered: list[GenerationParams] = []
    render = Renderer.render

    def render_and_record(self: Renderer, requests: list[GenerationParams], *rest: Any) -> np.ndarray:
        rendered.extend(requests)
        return render(self, requests, *rest)

    monkeypatch.setattr(Renderer, "render", render_and_record)
    file = tmp_path / "same.jsonl"
    write_prompts(file, [PROMPTS[0]] * 3)
    flags = ("--prompts", str(file), "--steps", "1", *flags)
    assert report(capsys, "--model", str(examined), *flags)["seed"] == first_seed
    assert [params.seed for params in rendered] == [first_seed, first_seed + 1, first_seed + 2]


def test_a_file_of_prompts_and_a_limit(
    capsys: pytest.CaptureFixture[str], examined: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jsonl"
    write_prompts(file, PROMPTS[1:])
    result = report(capsys, "--model", str(examined), "--prompts", str(file), "--limit", "1", "--steps", "1")
    assert result["sets"].keys() == {"mine"}
    assert result["sets"]["mine"]["prompts"] == 1
    assert "style_accuracy" in result["sets"]["mine"]  # the first names a style, the second a background


def test_the_text_output(capsys: pytest.CaptureFixture[str], examined: Path) -> None:
    assert cli.main(["eval", "--model", str(examined), "--steps", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["tiny: 1 steps, guidance 5, dpmpp_2m", "things:"]
    assert any("concept_top5" in line and "100.0%" in line and "3 of 3" in line for line in lines)


def test_kept_images_are_not_rendered_again(
    capsys: pytest.CaptureFixture[str], examined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ("--model", str(examined), "--steps", "1", "--keep", str(tmp_path))
    first = report(capsys, *argv)
    assert len([*tmp_path.glob("*.png")]) == 3
    monkeypatch.setattr(
        "safelight.pipeline.engine.engine.Engine.step",
        lambda self: pytest.fail("an image was rendered again"),
    )
    assert report(capsys, *argv)["sets"] == first["sets"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--limit", "0"], "--limit must be at least 1"),
        (["--steps", "0"], "--steps must be between 1 and 200"),
        (["--solver", "magic"], "--solver 'magic' is not served"),
        (["--solver", "plms", "--steps", "2"], "--steps must be at least 3 for plms"),
        (["--seed", "-1"], "--seed must be between 0 and"),
        (["--prompts", "/nowhere.jsonl"], "/nowhere.jsonl cannot be read"),
        (["--keep", "/nowhere"], "there is no folder /nowhere"),
        (["--keep", "/proc"], "cannot write /proc/"),
    ],
)
def test_a_user_error_is_one_line(
    capsys: pytest.CaptureFixture[str], examined: Path, argv: list[str], message: str
) -> None:
    assert message in refused(capsys, "--model", str(examined), *argv)


def test_names_unknown_to_the_gallery_are_refused(
    capsys: pytest.CaptureFixture[str], examined: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.jsonl"
    write_prompts(file, [Prompt("x", ("zz",))])
    assert "concept 'zz' is unknown" in refused(capsys, "--model", str(examined), "--prompts", str(file))


def test_a_model_without_prompts_or_gallery_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert "brings no prompts" in refused(capsys, "--model", "tiny")
    file = tmp_path / "mine.jsonl"
    write_prompts(file, PROMPTS)
    assert "no gallery" in refused(capsys, "--model", "tiny", "--prompts", str(file))
