"""Prompts, rates and renderer, on a gallery of plain discs whose nearest images are known."""

import itertools
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.checkpoints.read_options import ReadOptions
from safelight.models.evaluation.clip_scorer import Scorer
from safelight.models.evaluation.gallery import Gallery, GalleryEntry, pool_images, shrink_renders
from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.device import fast_dtype
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.evaluation import renderer
from safelight.pipeline.evaluation.clip_score import Mean, clip_scores
from safelight.pipeline.evaluation.nearest_image import Rate, frame_background, rate_images
from safelight.pipeline.evaluation.prompts import (
    InvalidPrompts,
    Prompt,
    read_prompt_sets,
    read_prompts,
    write_prompts,
)
from safelight.pipeline.evaluation.renderer import Renderer
from tests.pipeline.parts import alone, decode, model, params

BACKGROUNDS = {"white": (255, 255, 255), "blue": (50, 110, 210)}
# c and d are indistinguishable
COLOURS = {"a": (200, 30, 30), "b": (30, 200, 30), "c": (30, 30, 30), "d": (31, 30, 30)}


def disc(colour: tuple[int, int, int], radius: int) -> np.ndarray:
    y, x = np.mgrid[:64, :64]
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[(x - 32) ** 2 + (y - 32) ** 2 < radius**2] = (*colour, 255)
    return rgba


def on_background(rgba: np.ndarray, background: str) -> np.ndarray:
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
    return Gallery(entries, shrink_renders([rgba for *_, rgba in RENDERS]), BACKGROUNDS)


def image(code: str, style: str, background: str = "white") -> np.ndarray:
    return on_background(disc(COLOURS[code], RADII[style]), background)


def test_a_gallery_is_saved_and_loaded(gallery: Gallery, tmp_path: Path) -> None:
    gallery.save(tmp_path)
    loaded = Gallery.load(tmp_path)
    assert (loaded.entries, loaded.backgrounds) == (gallery.entries, gallery.backgrounds)
    torch.testing.assert_close(loaded.pixels, gallery.pixels, atol=0.5 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize("margin", [(0, 32), (32, 0)], ids=["wide", "tall"])
def test_the_middle_square_of_an_image_is_compared(gallery: Gallery, margin: tuple[int, int]) -> None:
    rows, columns = margin
    square = np.stack([image(code, style, "blue") for code, style, _ in RENDERS])
    padded = np.pad(square, ((0, 0), (columns, columns), (rows, rows), (0, 0)))
    torch.testing.assert_close(pool_images(padded), pool_images(square))


def test_a_missing_gallery_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no gallery"):
        Gallery.load(tmp_path)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_clean_image_is_nearest_to_itself_on_any_background(gallery: Gallery, background: str) -> None:
    images = np.stack([on_background(rgba, background) for *_, rgba in RENDERS])
    torch.testing.assert_close(pool_images(images), gallery.points(background), atol=1e-6, rtol=0)
    nearest = [row[0] for row in gallery.nearest(images, background)]
    assert [gallery.concept_groups[i] for i in nearest] == [*gallery.concept_groups]


def test_indistinguishable_concepts_are_one_group(gallery: Gallery) -> None:
    assert [*gallery.concept_groups] == ["a", "a", "b", "b", "c", "c", "c", "c"]


def test_every_rate_counts_its_hits(gallery: Gallery) -> None:
    prompts = [
        Prompt("disc a", ("a",)),
        Prompt("flat disc b", ("b",), "flat"),
        Prompt("flat disc c", ("c",), "flat"),
        Prompt("disc a on a blue background", ("a",), None, "blue"),
        Prompt("disc", ("a", "b")),
        Prompt("something", background="white"),
    ]
    images = np.stack(
        [
            image("a", "round"),
            image("b", "round"),
            image("d", "flat"),
            image("a", "flat", "blue"),
            image("c", "flat"),
            image("c", "flat", "blue"),
        ]
    )
    rates = rate_images(gallery, prompts, images)
    assert {name: (rate.hits, rate.count) for name, rate in rates.items()} == {
        "concept_top1": (4, 5),  # all but the fifth
        "concept_top5": (5, 5),
        "style_accuracy": (1, 2),
        "concept_and_style": (1, 2),
        "background_accuracy": (1, 2),
        # b is never restored, but the fifth prompt accepts a as well
        "ceiling": (4, 5),
        # the prompt after next matches the fourth image only: `disc a`
        "floor": (1, 5),
    }


class RednessScorer:
    """Scores an image by the redness of its centre if the text ends with `a`, else by the negative."""

    def score(self, images: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        middle = images[:, images.shape[1] // 2, images.shape[2] // 2].astype(float)
        red = middle[:, 0] - middle[:, 1]
        scores: np.ndarray = np.where([text.endswith(" a") for text in texts], red, -red)
        return scores


def test_clip_scores_have_a_ceiling_and_a_floor(gallery: Gallery) -> None:
    prompts = [
        Prompt("disc a", ("a",)),
        Prompt("flat disc b", ("b",), "flat"),
        Prompt("disc"),
        Prompt("odd disc a", ("a",), "odd"),
    ]
    images = np.stack([image("a", "round"), image("b", "round"), image("d", "flat"), image("b", "flat")])
    scores = clip_scores(cast(Scorer, RednessScorer()), gallery, prompts, images)
    assert {name: mean.count for name, mean in scores.items()} == {
        "clip_score": 4,
        "clip_floor": 4,
        "clip_ceiling": 3,
    }
    assert scores["clip_score"].value == pytest.approx((170 + 170 - 1 - 170) / 4)
    assert scores["clip_ceiling"].value == pytest.approx(170.0)
    # with the prompts `disc`, `odd disc a`, `disc a`, `flat disc b`
    assert scores["clip_floor"].value == pytest.approx((-170 - 170 + 1 + 170) / 4)


def test_the_interval_of_a_mean() -> None:
    mean = Mean.from_scores(np.array([1.0, 2.0, 3.0, 4.0]))
    assert mean.value == 2.5 and mean.high - mean.value == pytest.approx(1.96 * 1.29099 / 2, rel=1e-4)
    assert Mean.from_scores(np.array([7.0])) == Mean(7.0, 7.0, 7.0, 1)


def test_rates_without_prompts_are_left_out(gallery: Gallery) -> None:
    images = np.stack([image("a", "flat", "blue")])
    assert {*rate_images(gallery, [Prompt("x", background="blue")], images)} == {"background_accuracy"}


def test_the_frame_decides_the_background(gallery: Gallery) -> None:
    assert frame_background(gallery, image("a", "flat", "blue")) == "blue"
    assert frame_background(gallery, image("c", "flat", "white")) == "white"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt("x", ("zz",)), "concept"),
        (Prompt("x", style="odd"), "style"),
        (Prompt("x", background="odd"), "background"),
    ],
)
def test_names_unknown_to_the_gallery_are_refused(gallery: Gallery, prompt: Prompt, message: str) -> None:
    with pytest.raises(InvalidPrompts, match=message):
        rate_images(gallery, [prompt], np.stack([image("a", "flat")]))


def test_wilson_interval() -> None:
    assert Rate(20, 100).interval == pytest.approx((0.1334, 0.2888), abs=1e-3)
    assert Rate(0, 10).interval[0] == 0.0
    assert Rate(10, 10).interval[1] == 1.0
    assert Rate.from_hits([True, False, True]) == Rate(2, 3)


def test_prompts_are_written_and_read(tmp_path: Path) -> None:
    prompts = (Prompt("a"), Prompt("b", ("1f34e",), "flat", "blue"), Prompt("c", ("1", "2")))
    write_prompts(tmp_path / "prompts" / "mine.jsonl", prompts)
    assert read_prompt_sets(tmp_path) == {"mine": prompts}
    assert json.loads((tmp_path / "prompts" / "mine.jsonl").read_text().splitlines()[1])["concept"] == "1f34e"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no prompts"),
        ("{", "line 1: not JSON"),
        ('{"prompt": "a"}\n[]', "line 2"),
        ('{"style": "flat"}', "a prompt is expected"),
        ('{"prompt": " "}', "a prompt is expected"),
        ('{"prompt": "a", "seed": 1}', "seed is not a field"),
        ('{"prompt": "a", "style": 3}', "style must be a text"),
        ('{"prompt": "a", "concept": [1]}', "concept must be a text"),
    ],
)
def test_an_invalid_file_of_prompts_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(content)
    with pytest.raises(InvalidPrompts, match=message):
        read_prompts(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidPrompts, match="cannot be read"):
        read_prompts(tmp_path / "none.jsonl")


def test_images_of_another_variant_of_the_weights_are_rendered_again(tmp_path: Path) -> None:
    served = model()
    chosen = replace(served, read_options=ReadOptions(variant="fp16"))  # a part without it is read as it is
    plain, variant = (Renderer(info, tmp_path)._file(tmp_path, REQUESTS[0]) for info in (served, chosen))
    assert plain != variant


REQUESTS = [params(prompt=f"a {word}", num_steps=2, seed=i) for i, word in enumerate(("cat", "dog", "cat"))]


def test_images_come_in_the_order_of_their_prompts_and_equal_single_renders() -> None:
    together = Renderer(model()).render(REQUESTS)
    assert together.shape == (3, 64, 64, 3)
    for i, request in enumerate(REQUESTS):
        assert np.array_equal(Renderer(model()).render([request])[0], together[i])


def test_kept_images_are_not_rendered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    first = Renderer(model(), tmp_path).render(REQUESTS, counts.append)
    assert (counts[0], counts[-1]) == (0, 3)
    files = sorted(file.name for file in tmp_path.iterdir())
    assert len(files) == 3
    assert all(name.startswith(("a-cat", "a-dog")) for name in files)
    resumed = Renderer(model(), tmp_path)
    monkeypatch.setattr(resumed, "_add", None)  # rendering would fail
    assert np.array_equal(resumed.render(REQUESTS), first)


def test_an_image_is_kept_under_all_that_decides_its_bytes(tmp_path: Path) -> None:
    """Its parameters, the weights, and how they are quantized."""
    other = tmp_path / "other"
    shutil.copytree(model().path, other)
    (weights,) = (other / "transformer").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    digests = [renderer._digest(folder) for folder in (model().path, other)]
    assert digests[0] != digests[1] and renderer._digest(model().path) == digests[0]
    plain = Renderer(model(), tmp_path)
    files = [plain._file(tmp_path, request) for request in REQUESTS]
    assert len({*files}) == 3 and files[0].name.startswith("a-cat-")
    for digest in (digests[1], f"{digests[0]}int8"):
        plain._weights = digest
        assert plain._file(tmp_path, REQUESTS[0]) not in files


def test_a_resumed_run_renders_the_missing_images(tmp_path: Path) -> None:
    whole = Renderer(model(), tmp_path).render(REQUESTS)
    next(tmp_path.glob("a-dog*")).unlink()
    counts: list[int] = []
    assert np.array_equal(Renderer(model(), tmp_path).render(REQUESTS, counts.append), whole)
    assert counts == [2, 3]


def test_more_prompts_than_the_queue_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of unequal steps, so that they finish in another order; each is the image that it is alone."""
    requests = [replace(request, num_steps=8 - i, seed=7 + i) for i, request in enumerate(REQUESTS * 2)]
    alone = [Renderer(model()).render([request])[0] for request in requests]
    for first, second in itertools.combinations(alone, 2):
        assert not np.array_equal(first, second)
    limited = Renderer(model())
    monkeypatch.setattr(renderer, "MAX_QUEUED", 2)
    add, num_waiting = limited._engine.add, list[int]()

    def counted_add(*args: Any) -> None:
        add(*args)
        num_waiting.append(limited._engine.num_waiting)

    monkeypatch.setattr(limited._engine, "add", counted_add)
    assert np.array_equal(limited.render(requests), np.stack(alone))
    assert len(num_waiting) == len(requests) and max(num_waiting) == 2


def test_an_invalid_request_is_refused_before_any_image(tmp_path: Path) -> None:
    with pytest.raises(InvalidParams):
        Renderer(model(), tmp_path).render([*REQUESTS, params(solver="odd")])
    assert not list(tmp_path.iterdir())


def test_an_image_is_compared_on_the_background_of_its_prompt(gallery: Gallery) -> None:
    """On white, the larger disc would be nearer: its colour is nearer to blue than white is."""
    images = np.stack([image("c", "round", "blue")])
    rates = rate_images(gallery, [Prompt("round disc c on blue", ("c",), "round", "blue")], images)
    assert (rates["concept_top1"].hits, rates["style_accuracy"].hits) == (1, 1)


def test_the_renderer_tells_prompt_and_negative_prompt_apart() -> None:
    request = params(prompt="a cat", negative_prompt="a dog", num_steps=2)
    [pixels] = decode(build_decoder(model()), [alone(request, dtype=fast_dtype())])
    assert np.array_equal(Renderer(model()).render([request])[0], pixels)
