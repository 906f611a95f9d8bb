"""The stages that train on natural captions and several sizes, on a data set of a few images."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from safelight.models.recipes.emoji import (
    cheap_decoder,
    data,
    dit,
    natural,
    natural_text,
    reading,
    teacher,
    text,
    token_rows,
    turbo,
    vae,
    variations,
    views,
)
from safelight.models.recipes.emoji.captions import STYLES, Concept, sample_caption
from safelight.models.recipes.emoji.training import WeightAverage
from safelight.models.text.clip import ClipTextTower, text_states
from safelight.pipeline.flops.vae import decode_flops

SMALL = replace(dit.CONFIG, num_attention_heads=1, num_layers=2)
CONCEPTS = (
    Concept("1f34e", "red apple", ("fruit", "healthy", "red")),
    Concept("1f680", "rocket", ("space", "launch")),
    Concept("1f355", "pizza", ("cheese", "slice", "food")),
)


def embed(work: Path, texts: list[str]) -> Tensor:
    """Stands in for the sentence encoder: a fixed random vector for each text."""
    rows = [torch.randn(16, generator=torch.Generator().manual_seed(hash_of(t))) for t in texts]
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


def hash_of(word: str) -> int:
    return int.from_bytes(word.encode()[:7].ljust(7), "big")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder as the first stages leave it: data, CLIP, autoencoder, DiT and soft targets."""
    work = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    images = [(concept, style) for concept in CONCEPTS for style in STYLES]
    rng = np.random.default_rng(0)
    np.save(work / "pictures.npy", rng.integers(0, 256, (len(images), 128, 128, 4), np.uint8))
    records = [
        {"hexcode": c.hexcode, "label": c.label, "keywords": c.keywords, "style": s} for c, s in images
    ]
    (work / "pictures.json").write_text(json.dumps(records))
    dataset = data.load(work)
    clip = text.CONDITIONING.build()
    text._zero_untrained_tokens(clip, text.trained_tokens(dataset))
    text.write_folder(work / text.CONDITIONING.folder, text.CONDITIONING, clip)
    vae.build().save_pretrained(work / "vae")
    model = dit.ConditionedDiT(dit.build(SMALL))
    state = {"step": 0, "module": model.state_dict(), "average": WeightAverage(model, 0.9).shadow}
    torch.save(state | {"optimisers": []}, work / "dit.ckpt")
    texts = ["red apple", "a tin of sardines", "rocket ship"]
    probabilities = torch.tensor([[0.8, 0.2], [0.5, 0.5], [0.9, 0.1]])
    targets = {
        "texts": texts,
        "concepts": torch.tensor([[0, 1], [2, 0], [1, 2]]),
        "probabilities": probabilities,
    }
    torch.save(targets, work / "teacher.pt")
    return work


@pytest.fixture
def work(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `inputs` whose large files are shared, with small batches and a small DiT."""
    for file in inputs.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "dit.ckpt").unlink()
    (tmp_path / "dit.ckpt").write_bytes((inputs / "dit.ckpt").read_bytes())
    build = dit.build
    monkeypatch.setattr(dit, "build", lambda: build(SMALL))
    monkeypatch.setattr(teacher, "embed", embed)
    # Of so few images a share would leave some sizes without a coloured background.
    monkeypatch.setattr(views, "NUM_COLOURS", dict.fromkeys(views.NUM_COLOURS, 1.0))
    for name, value in (("NATURAL", 6), ("SOFT", 3), ("GRAMMAR", 4), ("READ", 2), ("QUERY_IMAGES", 2)):
        monkeypatch.setattr(natural_text, name, value)
    return tmp_path


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
        steps = []
        while not steps or steps[-1] < OPTIONS.num_steps:
            state = torch.load(train(work, replace(OPTIONS, minutes=minutes)), weights_only=True)
            steps.append(state["step"])
        assert steps == ([3] if minutes else [1, 2, 3])
        states.append(state)
    whole, parts = states
    assert whole["module"].keys() == parts["module"].keys()
    for name in whole["module"]:
        assert torch.equal(whole["module"][name], parts["module"][name]), name
        assert not name.endswith("to_q.weight") or whole["module"][name].isfinite().all()


def test_the_natural_stage_keeps_the_tower_servable(work: Path) -> None:
    """It writes a tower that knows the words of natural captions, and that the DiT's training then uses."""
    old = ClipTextTower(work / text.CONDITIONING.folder)
    caption = natural.training_captions()["1f680"][0]
    assert old.tokenise("spaceship bananas").unknown_words
    natural_text.run(work, 1)
    folder = text.tower_folder(work)
    assert folder == work / text.NATURAL_FOLDER
    new = ClipTextTower(folder)
    assert new.tokenise(caption).unknown_words == ()
    assert "zeitgeist" in new.tokenise("zeitgeist").unknown_words
    known = new.text.token_embedding.weight.abs().amax(1) > 0
    expected = token_rows.choose(data.load(work), natural.training_captions(), ()).tokens
    assert torch.equal(known.nonzero()[:, 0], expected)


def test_the_anchor_is_zero_before_training(work: Path) -> None:
    """At the start the new tower is the old one, so the grammar's states and readings have not moved."""
    stage = natural_text.NaturalStage(work, seed=0)
    captions = ["red apple", "flat pizza on blue", "a rocket", "3d rocket"]
    texts = natural_text.Texts(captions, captions, captions, [], torch.zeros(0), torch.zeros(0), "blue")
    with text.shortened(stage.clip.text, stage._rows.ids([*captions, *captions])) as ids:
        states, mask = text_states(stage.clip.text, ids)
    assert float(stage._reading_loss(texts, states, mask)) == pytest.approx(0.0, abs=1e-6)
    assert float(stage._reading_loss(texts, states.flip(1), mask)) > 0.1


def test_compact_rows_leave_the_states_as_they_are(work: Path) -> None:
    dataset = data.load(work)
    rows = token_rows.choose(dataset, natural.training_captions(), ["a gizmo", "gizmo", "gizmo", "doodad"])
    whole, small = (natural_text.retrieval.load_clip(work / text.CONDITIONING.folder) for _ in range(2))
    token_rows.compact(small, rows)
    assert small.text.token_embedding.num_embeddings == len(rows.tokens) < 20_000
    captions = ["a flat red apple on blue", "gizmo pizza"]
    with torch.no_grad():
        expected = text_states(whole.text, token_rows.tokenise(captions))[0]
        torch.testing.assert_close(text_states(small.text, rows.ids(captions))[0], expected)
    token_rows.expand(small, rows)
    weight = whole.text.token_embedding.weight
    assert torch.equal(small.text.token_embedding.weight[rows.tokens], weight[rows.tokens])
    # `doodad` occurs once only, so its word is left out, as the serving tower does
    assert torch.equal(rows.ids(["doodad pizza"]), rows.ids(["pizza"]))
    assert not torch.equal(rows.ids(["gizmo pizza"]), rows.ids(["pizza"]))


def test_new_rows_start_where_their_words_mean(work: Path) -> None:
    """New rows are the image of the words' embeddings under the map that fits the trained rows."""
    clip = natural_text.retrieval.load_clip(work / text.CONDITIONING.folder)
    rows = token_rows.choose(data.load(work), natural.training_captions(), ())
    table = clip.text.token_embedding.weight
    before = table.detach().clone()
    token_rows.initialise(clip, rows, work)
    was_trained = before.abs().amax(1) > 0
    assert torch.equal(table[was_trained], before[was_trained])
    assert (table[rows.tokens].abs().amax(1) > 0).all()
    untouched = torch.ones(len(table), dtype=torch.bool)
    untouched[rows.tokens] = False
    assert torch.equal(table[untouched], before[untouched])


def test_a_reading_is_the_cross_attention_of_the_network() -> None:
    """At the network's own queries it equals what `attn2` computes before its output projection."""
    torch.manual_seed(0)
    model = dit.build(SMALL)
    x0, states = torch.randn(2, 8, 16, 16), torch.randn(2, 5, 192)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    queries = reading.collect_queries(model, x0, states, mask, 7, torch.Generator().manual_seed(1))
    assert queries.shape == (2, 1, 7, 64)
    read = reading.Reading(model, queries)(states, mask)
    key_values = model.text_key_values(states, mask).kv
    for block in range(2):
        for i in range(2):
            expected = model.attention(
                queries[block][None], key_values[block, 0, i : i + 1], key_values[block, 1, i : i + 1],
                mask[i : i + 1],
            )  # fmt: skip
            torch.testing.assert_close(read[block, :, i], expected[0])
    assert float(reading.distance(read, read)) == 0.0
    mean = read.mean(2, keepdim=True).expand_as(read)
    assert float(reading.distance(mean, read)) == pytest.approx(1.0)


def test_logits_of_concepts_gather_their_images() -> None:
    images = [data.EmojiImage(CONCEPTS[i], STYLES[0]) for i in (0, 1, 0, 2)]
    dataset = data.Dataset(tuple(images), np.zeros((4, 1, 1, 4), np.uint8))
    slots = natural_text.concept_slots(CONCEPTS, dataset, [0, 1, 2])
    assert slots.tolist() == [[0, 2], [1, -1], [-1, -1]]
    logits = natural_text.concept_logits(torch.tensor([[1.0, 2.0, 3.0]]), slots)
    assert logits[0, :2].tolist() == pytest.approx([float(np.logaddexp(1, 3)), 2.0])
    assert logits[0, 2] < -1e3
    targets = logits.softmax(-1)
    entropy = -(targets * logits.log_softmax(-1)).sum()
    assert float(natural_text.soft_cross_entropy(logits, targets)) == pytest.approx(float(entropy))


def test_variations_are_new_and_no_held_out_caption_is_among_them() -> None:
    concepts = [Concept(hexcode, f"thing {hexcode}", ("alpha", "beta")) for hexcode in natural.load()]
    held_out = {caption for of_concept in natural.held_out_captions().values() for caption in of_concept}
    # the held-out captions themselves as synonyms of a frequent word: the worst case
    synonyms = {"face": sorted(held_out)}
    texts = variations.make(concepts[:40], synonyms)
    assert texts == variations.make(concepts[:40], synonyms)
    assert len(texts) == len({*texts}) > 400
    assert not {*texts} & {caption for of_concept in natural.load().values() for caption in of_concept}
    assert variations.with_synonym("face", {"face": ["visage"]}, random.Random(0)) == "visage"
    assert variations.without_a_word("one two", random.Random(0)) in {"one", "two"}


def test_synonyms_are_read_from_wordnet() -> None:
    line = "02124272 05 n 03 cat 0 true_cat(a) 1 2020s 0 001 @ 02123649 n 0000 | feline mammal"
    assert variations.synset(line) == ["cat", "true cat"]
    assert variations.synset("  1 This software and database is being provided") == []


def test_the_classifier_finds_what_it_was_fitted_on() -> None:
    torch.manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(60, 32), dim=-1)
    labels = torch.arange(60) % 20
    classifier = teacher.Classifier(embeddings, labels, 20)
    before = float((classifier(embeddings).argmax(1) == labels).float().mean())
    for _ in range(20):
        classifier.fit(embeddings, labels)
    assert float((classifier(embeddings).argmax(1) == labels).float().mean()) > max(0.95, before - 0.01)


def test_labelled_texts_are_of_their_concepts() -> None:
    captions = {"1f680": ("spaceship", "lift off")}
    texts, labels = teacher.labelled_texts(CONCEPTS, captions)
    assert [texts[i] for i in (labels == 1).nonzero()[:, 0]] == [
        "rocket",
        "space launch",
        "spaceship",
        "lift off",
    ]
    assert teacher.labelled_texts(CONCEPTS, captions, names=False)[0] == ["spaceship", "lift off"]


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


def test_the_student_times_are_the_trailing_grid() -> None:
    times = turbo.sub_times()
    assert times.shape == (4, 5)
    assert times[:, 0].tolist() == pytest.approx([1.0, 6 / 7, 2 / 3, 0.4])
    assert times[:, -1].tolist() == pytest.approx([6 / 7, 2 / 3, 0.4, 0.0])
    drawn = turbo.draw_intervals(4000, torch.Generator().manual_seed(0)).bincount() / 4000
    assert drawn.tolist() == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=0.03)


def test_the_covering_velocity_leads_where_the_sub_steps_lead() -> None:
    x, times = torch.randn(4, 8, 4, 4), turbo.sub_times()
    constant = turbo.covering_velocity(lambda y, t: torch.full_like(y, 3.0), x, times)
    torch.testing.assert_close(constant, torch.full_like(x, 3.0))

    def decay(y: Tensor, t: Tensor) -> Tensor:
        return y * t[:, None, None, None]

    end = x
    for k in range(4):
        end = end + (times[:, k + 1] - times[:, k])[:, None, None, None] * decay(end, times[:, k])
    span = (times[:, -1] - times[:, 0])[:, None, None, None]
    torch.testing.assert_close(x + span * turbo.covering_velocity(decay, x, times), end)


def test_the_base_is_guided_away_from_the_empty_text() -> None:
    batch = dit.Batch(torch.zeros(2, 8, 4, 4), torch.ones(2, 5, 3), torch.ones(2, 5, dtype=torch.bool))
    empty = (torch.full((1, 2, 3), -1.0), torch.ones(1, 2, dtype=torch.bool))

    def base(x: Tensor, timesteps: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        assert timesteps.tolist() == [500.0, 250.0] * 2
        assert mask.sum(1).tolist() == [5, 5, 2, 2]
        return x + states[:, :1, :1, None]

    velocity = turbo.guided(base, batch, empty)(torch.zeros(2, 8, 4, 4), torch.tensor([0.5, 0.25]))
    assert velocity.unique().tolist() == [-1.0 + turbo.GUIDANCE * 2.0]


def test_a_student_that_equals_the_target_has_no_loss() -> None:
    batch = dit.Batch(torch.randn(3, 8, 4, 4), torch.zeros(3, 1, 2), torch.ones(3, 1, dtype=torch.bool))
    student = turbo.loss(
        lambda x, *_: torch.full_like(x, 2.0),
        lambda x, t: torch.full_like(x, 2.0),
        batch,
        torch.Generator().manual_seed(0),
    )
    assert float(student) == pytest.approx(0.0, abs=1e-10)


def test_the_cheap_decoder_takes_a_third_of_the_operations(work: Path) -> None:
    present, cheap = (dict(build.config) for build in (vae.build(), cheap_decoder.build()))
    names = {"_class_name": "AutoencoderTiny"}
    assert decode_flops(cheap | names, 16, 16) <= decode_flops(present | names, 16, 16) / 3


def test_the_cheap_decoder_learns_on_frozen_latents(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae, "BATCH", 2)
    monkeypatch.setattr(vae, "psnr", lambda *_: 0.0)  # of hundreds of images
    cheap_decoder.run(work, 2)
    present = vae.AutoencoderTiny.from_pretrained(work / "vae")
    cheap = vae.AutoencoderTiny.from_pretrained(work / cheap_decoder.FOLDER)
    for name, tensor in present.encoder.state_dict().items():
        assert torch.equal(cheap.encoder.state_dict()[name], tensor), name
    torch.manual_seed(0)
    untrained = cheap_decoder.start(present).decoder.state_dict()
    changed = [
        not torch.equal(cheap.decoder.state_dict()[name], tensor) for name, tensor in untrained.items()
    ]
    assert any(changed)
