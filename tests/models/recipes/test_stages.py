"""Stages that are interrupted, resumed and carried elsewhere, on a data set of a few images."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from safelight.models.autoencoders.loading import load_vae
from safelight.models.checkpoints.tensors import list_tensors, read_stored
from safelight.models.recipes.emoji import (
    data,
    dit,
    natural_text,
    pack,
    rate,
    start,
    turbo,
    views,
)
from safelight.models.recipes.emoji.captions import Concept, sample_caption
from safelight.models.recipes.emoji.training import TrainingRun, WeightAverage
from safelight.models.text.clip import ClipTextTower
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.evaluation.prompts import Prompt
from tests.models.recipes.small_data import CONCEPTS, WEIGHTS

OPTIONS = dit.TrainingOptions(num_steps=3, batch=3)


def train_natural(work: Path, options: dit.TrainingOptions) -> Path:
    natural_text.run(work, options.num_steps, minutes=options.minutes)
    return work / "natural.ckpt"


def train_dit(work: Path, options: dit.TrainingOptions) -> Path:
    dit.run(work, options)
    return work / "dit.ckpt"


def train_turbo(work: Path, options: dit.TrainingOptions) -> Path:
    turbo.run(work, options)
    return work / "turbo.ckpt"


@pytest.mark.parametrize("train", [train_natural, train_dit, train_turbo])
def test_a_stage_that_is_interrupted_resumes_exactly(work: Path, train: Any) -> None:
    """Every run stops after one step; three of them give what one run of three steps gives."""
    (work / "dit.ckpt").rename(work / "given.ckpt")
    states = []
    for minutes in (float("inf"), 0.0):
        (work / "dit.ckpt").write_bytes((work / "given.ckpt").read_bytes())
        for checkpoint in ("natural.ckpt", "turbo.ckpt"):
            (work / checkpoint).unlink(missing_ok=True)
        steps: list[int] = []
        while not steps or steps[-1] < OPTIONS.num_steps:
            state = torch.load(train(work, replace(OPTIONS, minutes=minutes)), weights_only=True)
            steps.append(state["step"])
        assert steps == ([3] if minutes else [1, 2, 3])
        states.append(state)
    whole, parts = states
    assert whole["module"].keys() == parts["module"].keys()
    for name in whole["module"]:
        assert torch.equal(whole["module"][name], parts["module"][name]), name
    average = whole["average"]  # lags behind weights that move
    assert any(not torch.equal(whole["module"][name], average[name]) for name in average)


def test_batches_of_other_sizes_have_about_as_many_pixels() -> None:
    for size in views.OTHERS:
        pixels = dit.batch_of_size(size, 64) * size[0] * size[1]
        assert pixels == pytest.approx(64 * 128 * 128, rel=0.03), size
    assert dit.batch_of_size(views.NATIVE, 64) == 64


def test_views_are_made_in_parts_that_a_later_run_finds(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "PART", 4)
    encode, calls = views.encode, []

    def interrupted(*args: Any) -> Tensor:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(*args)

    dataset = data.load(work)
    monkeypatch.setattr(views, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        views.load(work, dataset, (96, 96), 0)
    whole = views.load(work, dataset, (96, 96), 0)
    assert len(calls) == 1 + -(-len(whole.image) // 4)  # the first part was not made again
    assert list(work.glob("*.part-*")) == []
    pairs = list(zip(whole.image.tolist(), whole.colour.tolist(), strict=True))
    assert torch.equal(whole.latents, encode(work, dataset, pairs, (96, 96)))


def test_a_share_of_the_images_has_one_more_background() -> None:
    images = tuple(data.EmojiImage(Concept(f"{c:x}", "x", ()), "3d") for c in range(0x1F300, 0x1F500))
    dataset = data.Dataset(images, np.zeros((len(images), 1, 1, 4), np.uint8))
    pairs = views._select_views(dataset, 0.25, seed=0)
    num_images = len({image for image, _ in pairs})
    assert len(pairs) / num_images == pytest.approx(1.25, abs=0.06)


def test_natural_captions_stand_in_frames() -> None:
    rng = random.Random(0)
    captions = [sample_caption(CONCEPTS[1], "flat", "blue", rng, ("my spaceship",)) for _ in range(1000)]
    about = [caption for caption in captions if "my spaceship" in caption]
    assert len(about) / len(captions) == pytest.approx(0.4, abs=0.05)
    assert {"flat my spaceship on blue", "my spaceship, blue background"} <= {*about}


def test_a_packed_data_set_is_unpacked_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    ramp = np.linspace(0, 255, 128, dtype=np.uint8)
    pixels = np.zeros((2, 128, 128, 4), np.uint8)
    pixels[0, ..., 0], pixels[0, ..., 3] = ramp, 255  # a red ramp, opaque
    pixels[1, 32:96, 32:96] = (0, 200, 0, 255)  # a green square on nothing
    np.save(source / "pictures.npy", pixels)
    records = [
        {"hexcode": c.hexcode, "label": c.label, "keywords": c.keywords, "style": "3d"} for c in CONCEPTS[:2]
    ]
    (source / "pictures.json").write_text(json.dumps(records))
    pack.run(source)
    (source / pack.FILE).rename(target / pack.FILE)
    pack.unpack(target)
    carried, original = data.load(target), data.load(source)
    assert carried.images == original.images
    for index in range(2):
        error = carried.on_background(index).astype(float) - original.on_background(index)
        assert np.sqrt(np.square(error).mean()) < 6.0
    monkeypatch.setattr(pack, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="at most"):
        pack.run(source)


def test_a_start_takes_the_exported_weights(tmp_path: Path) -> None:
    start.run(tmp_path, WEIGHTS)
    model = dit.ConditionedDiT(dit.build())
    run = TrainingRun("dit", model, dit.optimisers(model), WeightAverage(model, 0.9), 0, dit.latest(tmp_path))
    run.train(lambda step, generator: torch.zeros(()), seed=0)  # no step: the checkpoint is loaded
    exported = read_stored(list_tensors(WEIGHTS / "transformer"), "cpu", torch.float32)
    for name, tensor in model.dit.state_dict().items():
        assert torch.equal(tensor, exported[name]), name
    caption = "a flat red apple on blue"
    towers = [ClipTextTower(folder / "text_encoder") for folder in (WEIGHTS, tmp_path)]
    with torch.no_grad():
        assert torch.equal(towers[0].read(caption).states, towers[1].read(caption).states)
    load_vae(tmp_path / "vae", "cpu", torch.float32)


def test_a_checkpoint_in_training_is_rated(work: Path) -> None:
    options = rate.RatingOptions(limit=1, native_only=True)
    for _ in range(2):
        rate.run(work, WEIGHTS, options)
    first, second = (json.loads(line) for line in (work / "rates.jsonl").read_text().splitlines())
    assert {name: rates["count"] for name, rates in first["rates"].items()} == {
        f"{name} 128x128": 1 for name in rate.SETS
    }
    assert (first["checkpoint"], first["step"], first["num_inference_steps"]) == ("dit.ckpt", 0, 10)
    assert second["rates"] == first["rates"]
    trained = load_file(work / "rated" / "transformer" / "diffusion_pytorch_model.safetensors")
    module = torch.load(work / "dit.ckpt", weights_only=True)["module"]
    assert all(torch.equal(trained[name], module[f"dit.{name}"].bfloat16()) for name in trained)


def test_the_student_is_rated_in_four_evaluations_without_guidance(work: Path) -> None:
    options = rate.RatingOptions(limit=1, is_turbo=True)
    model = find_model(str(WEIGHTS))
    request = rate._request(Prompt("red apple"), 3, model, options)
    assert (request.num_steps, request.guidance_scale, request.solver) == (4, 1.0, "ddim")
    assert request.seed == 3
    base = rate._request(Prompt("red apple"), 3, model, replace(options, is_turbo=False))
    assert (base.num_steps, base.guidance_scale) == (10, model.guidance_scale)
