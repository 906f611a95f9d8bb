"""Parts of the recipe whose errors would go unnoticed: objectives, holdouts, captions, exact resumption."""

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import nn

from safelight.models.checkpoints.read_options import ReadOptions
from safelight.models.checkpoints.tensors import CLIP_WEIGHTS, list_tensors
from safelight.models.checkpoints.tensors import WEIGHTS as WEIGHTS_FILE
from safelight.models.evaluation.gallery import Gallery
from safelight.models.recipes import objectives
from safelight.models.recipes.emoji import (
    card,
    contest,
    curves,
    data,
    dit,
    muon,
    natural,
    prompts,
    sizes,
    views,
)
from safelight.models.recipes.emoji.captions import (
    COLOURS,
    MAX_KEYWORDS,
    STYLES,
    WHITE,
    Concept,
    sample_caption,
    with_background,
    with_style,
)
from safelight.models.recipes.emoji.data import EmojiImage, composite
from safelight.models.recipes.emoji.muon import FilterMuon, Muon, orthogonalise
from safelight.models.recipes.emoji.text import CONDITIONING as CLIP
from safelight.models.recipes.emoji.text import CONTEXT, SCORER, encode_texts, small_images
from safelight.models.recipes.emoji.training import (
    TrainingRun,
    WeightAverage,
    bfloat16_copies,
    one_minus_sqrt,
    warmup_cosine,
    warmup_stable,
    warmup_stable_decay,
)
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.diffusion.prediction import out_coefficients
from safelight.pipeline.diffusion.schedules import Flow, Schedule, VariancePreserving
from safelight.pipeline.evaluation.prompts import read_prompts

WEIGHTS = Path(dit.__file__).parents[2] / "weights" / "emoji-128"
APPLE = Concept("1f34e", "red apple", ("fruit", "healthy", "mac", "school"))


def test_flow_path_and_loss() -> None:
    x0, eps = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    x = objectives.flow_sample(x0, eps, torch.tensor([0.0, 1.0]))
    assert torch.equal(x[0], x0[0])
    assert torch.equal(x[1], eps[1])
    assert float(objectives.flow_matching_loss(eps - x0, x0, eps)) == 0.0
    assert float(objectives.flow_matching_loss(eps - x0 + 2.0, x0, eps)) == pytest.approx(4.0, rel=1e-5)
    # the target is the path's slope, so a small step along it stays on the path
    between = objectives.flow_sample(x0, eps, torch.tensor([0.3, 0.3]))
    torch.testing.assert_close(
        between + 0.2 * (eps - x0), objectives.flow_sample(x0, eps, torch.tensor([0.5, 0.5]))
    )


@pytest.mark.parametrize("schedule", [VariancePreserving(), VariancePreserving("cosine"), Flow()], ids=str)
def test_each_loss_is_the_squared_error_of_its_prediction(schedule: Schedule) -> None:
    """A perfect network has a loss of 0 for each prediction type, and one that is off by 2 a loss of 4."""
    x0, eps, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0.2, 0.6, 0.95])
    x = objectives.add_noise(x0, eps, t, schedule)
    out = {}
    for prediction in ("epsilon", "v_prediction"):
        u, w = zip(*(out_coefficients(prediction, *schedule.alpha_sigma(float(v))) for v in t), strict=True)
        out[prediction] = torch.tensor(u)[:, None, None, None] * x + torch.tensor(w)[:, None, None, None] * x0
    for error, loss in ((0.0, 0.0), (2.0, 4.0)):
        assert float(objectives.simple_loss(out["epsilon"] + error, eps)) == pytest.approx(loss, abs=1e-3)
        if schedule.family == "vp":  # v is defined for alpha^2 + sigma^2 = 1
            assert float(
                objectives.v_loss(out["v_prediction"] + error, x0, eps, t, schedule)
            ) == pytest.approx(loss, abs=1e-3)


def test_times_are_logit_normal() -> None:
    logits = torch.logit(objectives.logit_normal_times(20_000, torch.Generator().manual_seed(0)))
    assert float(logits.mean()) == pytest.approx(0.0, abs=0.03)
    assert float(logits.std()) == pytest.approx(1.0, abs=0.03)
    noisier = torch.logit(objectives.logit_normal_times(20_000, torch.Generator().manual_seed(0), mean=1.5))
    assert float(noisier.mean()) == pytest.approx(1.5, abs=0.03)


def test_the_holdout_follows_the_documented_rule() -> None:
    held_out = [
        EmojiImage(Concept(f"{code:x}", "x", ()), style).held_out_from_dit
        for code in range(0x1F300, 0x1F600)
        for style in STYLES
    ]
    assert sum(held_out) / len(held_out) == pytest.approx(1 / 20, abs=0.012)
    expected = int.from_bytes(hashlib.sha256(b"1f34e/3d").digest(), "big") % 20 == 0
    assert EmojiImage(APPLE, "3d").held_out_from_dit == expected


def test_captions_name_the_concept_and_no_other_style() -> None:
    rng = random.Random(0)
    captions = {sample_caption(APPLE, "flat", WHITE, rng) for _ in range(2000)}
    assert {"red apple", "a red apple", "flat red apple"} <= captions
    assert not any("3d" in c or "noto" in c for c in captions)
    for caption in captions:
        words = set(caption.replace(",", "").split())
        assert words & {"red", "fruit", "healthy", "mac", "school"}
        assert len(words & set(APPLE.keywords)) <= MAX_KEYWORDS
    assert with_style("rocket", "3d") == "3d rocket"


def test_backgrounds_other_than_white_are_always_named() -> None:
    rng = random.Random(0)
    blue = [sample_caption(APPLE, "flat", "blue", rng) for _ in range(500)]
    assert all("blue" in caption for caption in blue)
    assert {with_background("red apple", "blue"), "red apple on blue", "red apple, blue background"} <= {
        *blue
    }
    white = [sample_caption(APPLE, "flat", WHITE, rng) for _ in range(2000)]
    assert sum("white" in caption for caption in white) / len(white) == pytest.approx(0.1, abs=0.03)
    assert not any(
        colour in caption for caption in white for colour in COLOURS if colour not in ("red", WHITE)
    )


def test_a_twentieth_of_concepts_on_colours_is_held_out() -> None:
    shown = [
        EmojiImage(Concept(f"{code:x}", "x", ()), "3d").shown_on(c)
        for code in range(0x1F300, 0x1F600)
        for c in COLOURS
    ]
    assert sum(shown) / len(shown) == pytest.approx(19 / 20, abs=0.01)
    assert EmojiImage(APPLE, "3d").shown_on("blue") == EmojiImage(APPLE, "noto").shown_on("blue")


IMAGES = tuple(
    EmojiImage(Concept(f"{code:x}", f"thing {code}", ("thing", f"no {code % 7}")), s)
    for code in range(1000, 1200)
    for s in STYLES
)


def test_views_leave_out_held_out_images_and_colours() -> None:
    dataset = data.Dataset(IMAGES, np.zeros((len(IMAGES), 1, 1, 4), np.uint8))
    pairs = views._select_views(dataset, 3, seed=0)
    assert {i for i, _ in pairs} == {i for i, image in enumerate(IMAGES) if not image.held_out_from_dit}
    for index in {i for i, _ in pairs}:
        colours = [views.NAMES[c] for i, c in pairs if i == index]
        assert colours[0] == WHITE
        assert len({*colours}) == 4
        assert all(IMAGES[index].shown_on(colour) for colour in colours[1:])


def test_a_placed_image_is_centred_on_its_background() -> None:
    rgba = np.full((128, 128, 4), 255, np.uint8)
    placed = views.placed(rgba, (160, 96), (10, 20, 30))
    assert placed.shape == (96, 160, 3)
    assert (placed[:, :32] == (10, 20, 30)).all()
    assert (placed[:, 128:] == (10, 20, 30)).all()
    assert (placed[:, 32:128] == 255).all()


def test_half_of_the_annealing_batches_have_other_sizes() -> None:
    batch_sizes = [dit.size_of_batch(torch.Generator().manual_seed(step)) for step in range(600)]
    assert {*batch_sizes} == {views.NATIVE, *views.OTHERS}
    assert batch_sizes.count(views.NATIVE) / len(batch_sizes) == pytest.approx(0.5, abs=0.08)


def test_the_latest_annealed_checkpoint_is_exported(tmp_path: Path) -> None:
    assert dit.latest(tmp_path).name == "dit.ckpt"
    for first in (900, 12_000):
        (tmp_path / f"{dit.ANNEALED}{first:06d}.ckpt").touch()
    assert dit.latest(tmp_path).name == "annealed-012000.ckpt"


def test_annealing_starts_at_the_full_rate_from_any_step() -> None:
    factors = [one_minus_sqrt(step, 9000, 8000) for step in (7000, 8000, 8250, 9000)]
    assert factors == [1.0, 1.0, 0.5, 0.0]
    assert [warmup_stable(step, 0, 10) for step in (0, 9, 5000)] == [0.1, 1.0, 1.0]


def test_prompt_sets_match_their_names() -> None:
    sets = prompts.make_sets(IMAGES)
    held_out = {(image.concept.hexcode, image.style) for image in IMAGES if image.held_out_from_dit}
    assert {(prompt.concepts[0], prompt.style) for prompt in sets["held-out"]} == held_out
    assert not {(prompt.concepts[0], prompt.style) for prompt in sets["styled"]} & held_out
    for prompt in sets["backgrounds"]:
        assert prompt.background is not None
        assert EmojiImage(Concept(prompt.concepts[0], "", ()), "3d").shown_on(prompt.background)
    for prompt in sets["held-out-backgrounds"]:
        assert prompt.background is not None
        assert not EmojiImage(Concept(prompt.concepts[0], "", ()), "3d").shown_on(prompt.background)
    for prompt in sets["keywords"]:
        assert len(prompt.concepts) == len(
            {image.concept for image in IMAGES if all(k in prompt.text for k in image.concept.keywords)}
        )
    assert prompts.make_sets(IMAGES) == sets


def test_the_natural_set_is_of_held_out_captions() -> None:
    concepts = [Concept(hexcode, f"thing {hexcode}", ()) for hexcode in natural.load()]
    images = [EmojiImage(concept, style) for concept in concepts for style in STYLES]
    of_set = prompts.make_sets(images)["natural"]
    held_out = natural.held_out_captions()
    assert len({prompt.text for prompt in of_set}) == prompts.PER_SET
    assert all(prompt.text in held_out[prompt.concepts[0]] for prompt in of_set)
    assert [*read_prompts(WEIGHTS / "prompts" / "natural.jsonl")] == of_set


def test_small_images_keep_colour_and_opacity() -> None:
    rgba = np.zeros((1, 128, 128, 4), np.uint8)
    rgba[0, :64] = (200, 100, 0, 255)
    small = small_images(data.Dataset((), rgba), 64)
    assert small.shape == (1, 4, 64, 64)
    assert small[0, :, 0, 0].tolist() == [200, 100, 0, 255]
    assert small[0, :, 63, 63].tolist() == [0, 0, 0, 0]


def test_padding_does_not_change_encoded_texts() -> None:
    clip = CLIP.build().eval()
    ids = SimpleTokenizer(context_length=CONTEXT)(["red apple", "a flat red apple on a blue background"])
    with torch.inference_mode():
        torch.testing.assert_close(encode_texts(clip, ids), clip.encode_text(ids), atol=1e-5, rtol=0)
        assert clip.encode_text(ids).shape == (2, 192)  # the mask has its full size again


def test_the_scorer_has_another_seed_and_sees_all_images() -> None:
    assert (CLIP.seed, CLIP.sees_all) != (SCORER.seed, SCORER.sees_all)
    images = tuple(EmojiImage(Concept(f"{code:x}", "x", ()), "3d") for code in range(0x1F300, 0x1F380))
    dataset = data.Dataset(images, np.zeros((0, 128, 128, 4), np.uint8))
    assert len(SCORER.training_images(dataset)) == len(images) > len(CLIP.training_images(dataset))


def read_card() -> str:
    return (WEIGHTS / "README.md").read_text(encoding="utf-8")


def read_results(name: str) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((WEIGHTS / f"{name}.json").read_text())
    return results


@pytest.mark.parametrize("name", ["evaluation", "evaluation-turbo"])
def test_the_model_card_holds_the_evaluation(name: str) -> None:
    evaluation = read_results(name)
    assert card.table(evaluation) in read_card()
    settings = "{num_inference_steps} steps, guidance {guidance_scale:g}, `{solver}`"
    assert settings.format(**evaluation) in read_card()


def test_the_card_has_a_row_for_every_evaluated_set() -> None:
    evaluation = read_results("evaluation")
    assert {*evaluation["sets"]} <= {*card.SETS}  # a set without a description would be left out
    evaluation["sets"] = {"natural": evaluation["sets"]["names"], "names": evaluation["sets"]["names"]}
    rows = card.table(evaluation).splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["`names`", "`natural`"]


def test_the_model_card_holds_the_curves() -> None:
    results = read_results("curves")
    points = results["points"]
    for block in curves.table(points).split("\n\n"):
        assert f"\n\n{block}\n\n" in read_card()
    assert f"the first {results['prompts']} prompts of `{results['set']}`" in read_card()
    columns = {"guidance": curves.GUIDANCE, "stride": curves.STRIDES}
    for name, rates in points.items():
        assert [float(x) for x in rates] == [*columns.get(name, curves.STEPS)]

    def loss(solver: str) -> float:
        return 100 * float(points[solver]["50"]["rate"] - points[solver]["10"]["rate"])

    worst = max(loss(solver) for solver in curves.SOLVERS)
    summary = f"10 steps lose at most {worst:.1f} points against 50 (`dpmpp_2m` {loss('dpmpp_2m'):.1f})"
    assert summary in read_card()
    best = sorted(points["guidance"], key=lambda w: points["guidance"][w]["rate"])[-4:]
    assert f"the best guidance is {min(map(int, best))} to {max(map(int, best))}" in read_card()


def test_the_model_card_holds_the_objectives() -> None:
    results = read_results("objectives")
    assert f"\n\n{contest.table(results['contenders'])}\n\n" in read_card()
    assert [*results["contenders"]] == [*contest.OBJECTIVES]
    assert f"for {results['steps']:,} steps × {results['batch']} under each objective" in read_card()
    assert f"rated on {results['prompts']} {results['set']}" in read_card()


def test_the_model_card_holds_the_rates_at_other_sizes() -> None:
    results = read_results("sizes")
    (_, native), *others = (
        (size.replace("x", "×"), f"{100 * rate['rate']:.0f} %") for size, rate in results["sizes"].items()
    )
    *first, last = (f"{rate} at {size}" for size, rate in others)
    phrase = f"of {results['prompts']} {results['set']} {', '.join(first)} and {last}, against {native}"
    assert phrase in read_card()
    for size, rate in results["sizes"].items():
        loss = results["sizes"]["128x128"]["rate"] - rate["rate"]
        assert rate["is_served"] == (loss <= sizes.MAX_LOSS), size
    served = {size for size, rate in results["sizes"].items() if rate["is_served"]}
    assert {f"{width}x{height}" for width, height in find_model("emoji-128").sizes} == served


def test_the_model_card_holds_the_sizes_of_the_parts() -> None:
    rows = {
        line.split("|")[1].strip(" `"): [cell.strip() for cell in line.split("|")[3:5]]
        for line in read_card().splitlines()
        if line.startswith("| `") and line.endswith("MB |")
    }
    parts = {
        "transformer": (WEIGHTS_FILE, ""),
        "transformer, variant turbo": (WEIGHTS_FILE, "turbo"),
        "text_encoder": (CLIP_WEIGHTS, ""),
        "vae": (WEIGHTS_FILE, ""),
        "scorer": (CLIP_WEIGHTS, ""),
    }
    assert rows.keys() == parts.keys()
    for part, (weights, variant) in parts.items():
        tensors = list_tensors(WEIGHTS / part.partition(",")[0], weights, ReadOptions(variant))
        num_parameters = sum(math.prod(tensor.shape) for tensor in tensors.values())
        [file] = {tensor.file for tensor in tensors.values()}
        size = f"{file.stat().st_size / 1e6:.1f} MB"
        assert rows[part] == [f"{num_parameters / 1e6:.1f} M", size], part
    files = [*WEIGHTS.glob("*/*.safetensors"), *WEIGHTS.glob("gallery.*")]
    megabytes = round(sum(file.stat().st_size for file in files) / 1e6)
    assert f"All weights and the gallery are {megabytes} MB" in read_card()


def test_the_model_card_counts_the_gallery() -> None:
    gallery = Gallery.load(WEIGHTS)
    num_concepts = len({entry.hexcode for entry in gallery.entries})
    assert f"Images of {num_concepts:,} emoji" in read_card()
    assert f"in three styles, {len(gallery.entries):,} in all" in read_card()
    assert {entry.style for entry in gallery.entries} == {*STYLES}
    num_groups = len(set(gallery.concept_groups))
    assert f"which leaves {num_groups:,} of {num_concepts:,}" in read_card()


def test_composite_is_straight_alpha() -> None:
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    assert composite(rgba, (0, 0, 250)).tolist() == [[[200, 100, 0], [0, 0, 250], [40, 20, 200]]]


def test_learning_rate_rises_then_falls() -> None:
    factors = [warmup_cosine(step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[10] == pytest.approx(1.0)
    assert factors[-1] == pytest.approx(0.02, abs=0.01)


def test_the_rate_decays_over_the_last_fifth_only() -> None:
    assert [warmup_stable_decay(step, 1000, 10) for step in range(700)] == [
        warmup_stable_decay(step, 2000, 10) for step in range(700)
    ]
    last = [warmup_stable_decay(step, 1000, 10) for step in range(800, 1001)]
    assert last == sorted(last, reverse=True)
    assert (last[0], last[-1]) == (1.0, 0.0)


def test_filters_are_stepped_as_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps equal torch's Muon on a copy of the matrix, and the convolution uses its new filters."""
    monkeypatch.setattr(muon, "fast_dtype", lambda: torch.bfloat16)
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    matrix = nn.Parameter(convolution.weight.detach().permute(0, 2, 3, 1).reshape(6, 36).clone())
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9}
    filters = [cast(nn.Parameter, convolution.weight)]
    theirs = torch.optim.Muon([matrix], adjust_lr_fn="match_rms_adamw", **options)
    ours = FilterMuon(filters, **options)
    for _ in range(2):
        convolution(torch.randn(2, 4, 8, 8)).square().sum().backward()
        assert convolution.weight.grad is not None
        matrix.grad = convolution.weight.grad.permute(0, 2, 3, 1).reshape(6, 36).clone()
        ours.step()
        theirs.step()
        ours.zero_grad()
        assert convolution.weight.grad is None
        torch.testing.assert_close(convolution.weight.permute(0, 2, 3, 1).reshape(6, 36), matrix)


@pytest.mark.parametrize("shape", [(6, 36), (36, 6), (8, 8)])
def test_steps_in_float32_are_those_of_torch(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own differ by the rounding of bfloat16."""
    monkeypatch.setattr(muon, "fast_dtype", lambda: torch.float32)
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.zeros(shape)) for _ in range(2))
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.2, "momentum": 0.9}
    steps = (Muon([ours], **options), torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **options))
    for _ in range(3):
        gradient = torch.randn(shape)
        for p, optimiser in zip((ours, theirs), steps, strict=True):
            p.grad = gradient.clone()
            optimiser.step()
    difference = (ours - theirs).norm() / theirs.norm()
    assert difference < 0.02
    assert ours.dtype == torch.float32


@pytest.mark.parametrize("shape", [(6, 36), (36, 6), (8, 8)])
def test_orthogonalising_moves_singular_values_towards_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    result = orthogonalise(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5 and values.max() < 1.5
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert (u.T @ result @ vh.T).diagonal().min() > 0.5  # along the same singular vectors


def train(folder: Path, *stops: int) -> dict[str, Any]:
    """Train 6 steps, interrupted at each of `stops` and resumed from the checkpoint alone."""
    folder.mkdir()
    for stop in stops:
        torch.manual_seed(0)
        net = nn.Linear(4, 2)
        run = TrainingRun(
            "toy",
            net,
            [torch.optim.AdamW(net.parameters(), lr=0.1)],
            WeightAverage(net, 0.9),
            6,
            folder / "toy.ckpt",
            2,
            save_every_s=0.0,
        )

        def loss(
            step: int, generator: torch.Generator, net: nn.Linear = net, stop: int = stop
        ) -> torch.Tensor:
            if step == stop:
                raise KeyboardInterrupt
            output: torch.Tensor = net(torch.randn(8, 4, generator=generator))
            return output.square().mean()

        try:
            run.train(loss, seed=5)
        except KeyboardInterrupt:
            continue
    checkpoint: dict[str, Any] = torch.load(folder / "toy.ckpt", weights_only=True)
    return checkpoint


def test_an_interrupted_run_resumes_exactly(tmp_path: Path) -> None:
    whole, parts = train(tmp_path / "whole", 6), train(tmp_path / "parts", 2, 3, 6)
    assert whole["step"] == parts["step"] == 6
    for name in whole["module"]:
        assert torch.equal(whole["module"][name], parts["module"][name])
        assert torch.equal(whole["average"][name], parts["average"][name])


def test_gradients_reach_the_float32_parameters() -> None:
    net = nn.Linear(4, 2)
    torch.func.functional_call(
        net, bfloat16_copies(net), (torch.ones(1, 4, dtype=torch.bfloat16),)
    ).float().sum().backward()
    assert net.weight.grad is not None and net.bias.grad is not None
    assert net.weight.grad.dtype == torch.float32
    assert torch.equal(net.bias.grad, torch.ones(2))
