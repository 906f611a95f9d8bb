"""Prompts, judge and renderer, on a gallery of plain discs whose nearest neighbours are known."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.evaluation.gallery import Gallery, GalleryEntry, pooled, small
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.evaluation import renderer
from safelight.pipeline.evaluation.clip_score import Mean, clip_scores
from safelight.pipeline.evaluation.nearest_image import Rate, framed, judge
from safelight.pipeline.evaluation.prompts import (
    InvalidPrompts,
    Prompt,
    own_sets,
    read_prompts,
    write_prompts,
)
from safelight.pipeline.evaluation.renderer import Renderer
from tests.pipeline.parts import model, params

BACKGROUNDS = {"white": (255, 255, 255), "blue": (50, 110, 210)}
COLOURS = {
    "a": (200, 30, 30),
    "b": (30, 200, 30),
    "c": (30, 30, 30),
    "d": (31, 30, 30),
}  # nobody can tell c from d


def disc(colour: tuple[int, int, int], radius: int) -> np.ndarray:
    y, x = np.mgrid[:64, :64]
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[(x - 32) ** 2 + (y - 32) ** 2 < radius**2] = (*colour, 255)
    return rgba


def on(rgba: np.ndarray, background: str) -> np.ndarray:
    return np.where(rgba[..., 3:] > 0, rgba[..., :3], np.array(BACKGROUNDS[background], np.uint8)).astype(
        np.uint8
    )


RADII = {"flat": 28, "round": 14}
RENDERS = [(code, style, disc(colour, RADII[style])) for code, colour in COLOURS.items() for style in RADII]


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    entries = tuple(
        GalleryEntry(code, f"disc {code}", ("disc", code), style, held_out=False, restored=code != "b")
        for code, style, _ in RENDERS
    )
    return Gallery(entries, small([rgba for *_, rgba in RENDERS]), BACKGROUNDS)


def image(code: str, style: str, background: str = "white") -> np.ndarray:
    return on(disc(COLOURS[code], RADII[style]), background)


def test_a_gallery_comes_back_from_its_files(gallery, tmp_path):
    gallery.save(tmp_path)
    again = Gallery.load(tmp_path)
    assert (again.entries, again.backgrounds) == (gallery.entries, gallery.backgrounds)
    torch.testing.assert_close(again.pixels, gallery.pixels, atol=0.5 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize("margin", [(0, 32), (32, 0)], ids=["wide", "tall"])
def test_of_a_image_that_is_not_square_the_middle_is_judged(gallery, margin):
    rows, columns = margin
    square = np.stack([image(code, style, "blue") for code, style, _ in RENDERS])
    padded = np.pad(square, ((0, 0), (columns, columns), (rows, rows), (0, 0)))
    torch.testing.assert_close(pooled(padded), pooled(square))


def test_without_a_gallery_the_sentence_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no gallery"):
        Gallery.load(tmp_path)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_clean_image_is_nearest_to_itself_on_any_background(gallery, background):
    drawn = np.stack([on(rgba, background) for *_, rgba in RENDERS])
    torch.testing.assert_close(pooled(drawn), gallery.points(background), atol=1e-6, rtol=0)
    nearest = [row[0] for row in gallery.nearest(drawn, background)]
    assert [gallery.group[i] for i in nearest] == [*gallery.group]


def test_concepts_that_nobody_can_tell_apart_are_one(gallery):
    assert [*gallery.group] == ["a", "a", "b", "b", "c", "c", "c", "c"]


def test_every_figure_is_what_was_drawn(gallery):
    prompts = [
        Prompt("disc a", ("a",)),
        Prompt("flat disc b", ("b",), "flat"),
        Prompt("flat disc c", ("c",), "flat"),
        Prompt("disc a on a blue background", ("a",), None, "blue"),
        Prompt("disc", ("a", "b")),
        Prompt("something", background="white"),
    ]
    drawn = np.stack([
        image("a", "round"), image("b", "round"), image("d", "flat"), image("a", "flat", "blue"), image("c", "flat"),
        image("c", "flat", "blue"),
    ])  # fmt: skip
    found = judge(gallery, prompts, drawn)
    assert {name: (rate.hits, rate.count) for name, rate in found.items()} == {
        "concept_top1": (4, 5),  # all but the fifth
        "concept_top5": (5, 5),
        "style_accuracy": (1, 2),
        "concept_and_style": (1, 2),
        "background_accuracy": (1, 2),
        "ceiling": (4, 5),  # b is never restored, but a is, where either will do
        "floor": (
            1,
            5,
        ),  # the prompt after next of the third, `disc a or b`, is ... not c; of the fourth it is `disc a`
    }


class Redness:
    """Scores an image by its redness, whatever size it has, where the text speaks of `a`, and by the opposite elsewhere."""

    def score(self, drawn: np.ndarray, texts: list[str]) -> np.ndarray:
        middle = drawn[:, drawn.shape[1] // 2, drawn.shape[2] // 2].astype(float)
        red = middle[:, 0] - middle[:, 1]
        return np.where([text.endswith(" a") for text in texts], red, -red)


def test_the_second_opinion_has_a_ceiling_and_a_floor(gallery):
    prompts = [
        Prompt("disc a", ("a",)),
        Prompt("flat disc b", ("b",), "flat"),
        Prompt("disc"),
        Prompt("odd disc a", ("a",), "odd"),
    ]
    drawn = np.stack([image("a", "round"), image("b", "round"), image("d", "flat"), image("b", "flat")])
    found = clip_scores(Redness(), gallery, prompts, drawn)
    assert {name: mean.count for name, mean in found.items()} == {
        "clip_score": 4,
        "clip_floor": 4,
        "clip_ceiling": 3,
    }
    assert found["clip_score"].value == pytest.approx((170 + 170 - 1 - 170) / 4)
    assert found["clip_ceiling"].value == pytest.approx(170.0)
    assert found["clip_floor"].value == pytest.approx(
        (-170 - 170 + 1 + 170) / 4
    )  # of `disc`, `odd disc a`, `disc a`, `flat disc b`


def test_the_interval_of_a_mean():
    mean = Mean.of(np.array([1.0, 2.0, 3.0, 4.0]))
    assert (mean.value, mean.high - mean.value) == (2.5, pytest.approx(1.96 * 1.29099 / 2, rel=1e-4))
    assert Mean.of(np.array([7.0])) == Mean(7.0, 7.0, 7.0, 1)


def test_figures_that_nobody_asks_for_are_not_told(gallery):
    assert {*judge(gallery, [Prompt("x", background="blue")], np.stack([image("a", "flat", "blue")]))} == {
        "background_accuracy"
    }


def test_the_frame_tells_the_background_whatever_is_in_the_middle(gallery):
    assert framed(gallery, image("a", "flat", "blue")) == "blue"
    assert framed(gallery, image("c", "flat", "white")) == "white"


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        (Prompt("x", ("zz",)), "concept"),
        (Prompt("x", style="odd"), "style"),
        (Prompt("x", background="odd"), "background"),
    ],
)
def test_names_that_the_gallery_has_not_are_refused(gallery, prompt, what):
    with pytest.raises(InvalidPrompts, match=what):
        judge(gallery, [prompt], np.stack([image("a", "flat")]))


def test_wilson_interval():
    low, high = Rate(20, 100).interval
    assert (low, high) == (pytest.approx(0.1334, abs=1e-3), pytest.approx(0.2888, abs=1e-3))
    assert Rate(0, 10).interval[0] == 0.0
    assert Rate(10, 10).interval[1] == 1.0
    assert Rate.of([True, False, True]) == Rate(2, 3)


def test_prompts_come_back_from_their_file(tmp_path):
    prompts = (Prompt("a"), Prompt("b", ("1f34e",), "flat", "blue"), Prompt("c", ("1", "2")))
    write_prompts(tmp_path / "prompts" / "mine.jsonl", prompts)
    assert own_sets(tmp_path) == {"mine": prompts}
    assert json.loads((tmp_path / "prompts" / "mine.jsonl").read_text().splitlines()[1])["concept"] == "1f34e"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "no prompts"), ("{", "line 1: not JSON"), ('{"prompt": "a"}\n[]', "line 2"), ('{"style": "flat"}', "a prompt is wanted"),
        ('{"prompt": " "}', "a prompt is wanted"), ('{"prompt": "a", "seed": 1}', "seed is no field"),
        ('{"prompt": "a", "style": 3}', "style must be a text"), ('{"prompt": "a", "concept": [1]}', "concept must be a text"),
    ],
)  # fmt: skip
def test_a_file_of_prompts_that_is_wrong_is_refused(tmp_path, content, what):
    file = tmp_path / "mine.jsonl"
    file.write_text(content)
    with pytest.raises(InvalidPrompts, match=what):
        read_prompts(file)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InvalidPrompts, match="cannot be read"):
        read_prompts(tmp_path / "none.jsonl")


ASKED = [params(prompt=f"a {word}", num_steps=2, seed=i) for i, word in enumerate(("cat", "dog", "cat"))]


def test_images_come_in_the_order_of_their_prompts_and_are_those_of_the_engine():
    together = Renderer(model()).draw(ASKED)
    assert together.shape == (3, 64, 64, 3)
    for i, asked in enumerate(ASKED):
        assert np.array_equal(Renderer(model()).draw([asked])[0], together[i])


def test_what_is_kept_is_not_drawn_again(tmp_path: Path, monkeypatch):
    told: list[int] = []
    first = Renderer(model(), tmp_path).draw(ASKED, told.append)
    assert (told[0], told[-1]) == (0, 3)
    files = sorted(file.name for file in tmp_path.iterdir())
    assert len(files) == 3
    assert all(name.startswith(("a-cat", "a-dog")) for name in files)
    again = Renderer(model(), tmp_path)
    monkeypatch.setattr(again, "_add", None)  # drawing would fail
    assert np.array_equal(again.draw(ASKED), first)


def test_an_interrupted_run_goes_on_with_what_is_missing(tmp_path: Path):
    whole = Renderer(model(), tmp_path).draw(ASKED)
    next(tmp_path.glob("a-dog*")).unlink()
    told: list[int] = []
    assert np.array_equal(Renderer(model(), tmp_path).draw(ASKED, told.append), whole)
    assert told == [2, 3]


def test_more_prompts_than_wait_at_once(monkeypatch):
    monkeypatch.setattr(renderer, "WAITING", 1)
    assert np.array_equal(Renderer(model()).draw(ASKED), Renderer(model()).draw(ASKED[:2] + ASKED[2:]))


def test_what_cannot_be_drawn_is_refused_before_anything_is(tmp_path):
    with pytest.raises(InvalidParams):
        Renderer(model(), tmp_path).draw([*ASKED, params(solver="odd")])
    assert not list(tmp_path.iterdir())
