"""Stages `teacher` and `natural`: soft targets, the anchor to the DiT, and the rows in training."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from safelight.models.recipes.emoji import (
    data,
    dit,
    natural,
    natural_text,
    reading,
    retrieval,
    teacher,
    text,
    token_rows,
    variations,
)
from safelight.models.recipes.emoji.captions import STYLES, Concept
from safelight.models.text.clip import ClipTextTower, text_states
from tests.models.recipes.small_data import CONCEPTS, SMALL


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
    is_trained = new.text.token_embedding.weight.abs().amax(1) > 0
    expected = token_rows.choose(data.load(work), natural.training_captions(), ()).tokens
    assert torch.equal(is_trained.nonzero()[:, 0], expected)


def test_the_anchor_is_zero_before_training(work: Path) -> None:
    """At the start the new tower is the old one, so the grammar's states and readings have not moved."""
    stage = natural_text.NaturalStage(work, seed=0)
    captions = ["red apple", "flat cactus on blue", "a rocket", "3d rocket"]
    texts = natural_text.Texts(captions, captions, captions, [], torch.zeros(0), torch.zeros(0), "blue")
    ids = stage._rows.ids([*captions, *captions])
    with torch.no_grad(), text.shortened(stage.clip.text, ids) as short:
        states, mask = text_states(stage.clip.text, short)
    assert float(stage._reading_loss(texts, states, mask)) == pytest.approx(0.0, abs=1e-6)
    assert float(stage._reading_loss(texts, states.flip(1), mask)) > 0.1


def test_compact_rows_leave_the_states_as_they_are(work: Path) -> None:
    dataset = data.load(work)
    rows = token_rows.choose(dataset, natural.training_captions(), ["a gizmo", "gizmo", "gizmo", "doodad"])
    whole, small = (retrieval.load_clip(work / text.CONDITIONING.folder) for _ in range(2))
    is_new = token_rows.find_new(small, rows)
    assert 0 < int(is_new.sum()) < len(rows.tokens) < 20_000
    token_rows.compact(small, rows, is_new)
    assert len(small.text.token_embedding.new) == int(is_new.sum())
    captions = ["a flat red apple on blue", "gizmo cactus"]
    with torch.no_grad():
        expected = text_states(whole.text, token_rows.tokenise(captions))[0]
        torch.testing.assert_close(text_states(small.text, rows.ids(captions))[0], expected)
    token_rows.expand(small, rows)
    weight = whole.text.token_embedding.weight
    assert torch.equal(small.text.token_embedding.weight[rows.tokens], weight[rows.tokens])
    # `doodad` occurs once only, so its word is left out, as the serving tower does
    assert torch.equal(rows.ids(["doodad cactus"]), rows.ids(["cactus"]))
    assert not torch.equal(rows.ids(["gizmo cactus"]), rows.ids(["cactus"]))


def test_new_rows_start_where_their_words_mean(work: Path) -> None:
    """New rows are the image of the words' embeddings under the map that fits the trained rows."""
    clip = retrieval.load_clip(work / text.CONDITIONING.folder)
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
    line = "02124272 05 n 04 cat 0 true_cat(a) 1 2020s 0 kitty 2 001 @ 02123649 n 0000 | feline mammal"
    assert variations.synset(line) == ["cat", "true cat", "kitty"]
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
    captions: dict[str, tuple[str, ...]] = {"1f680": ("spaceship", "lift off")}
    texts, labels = teacher.labelled_texts(CONCEPTS, captions)
    assert [texts[i] for i in (labels == 1).nonzero()[:, 0]] == [
        "rocket",
        "space launch",
        "spaceship",
        "lift off",
    ]
    assert teacher.labelled_texts(CONCEPTS, captions, names=False)[0] == ["spaceship", "lift off"]


def test_states_by_length_are_those_of_one_batch() -> None:
    torch.manual_seed(0)
    clip = text.CONDITIONING.build().eval()
    ids = token_rows.tokenise(["red apple", "", "a flat red apple on a blue background", "cat", "two words"])
    with torch.no_grad():
        states, mask = natural_text.states_by_length(clip, ids)
        with text.shortened(clip.text, ids) as short:
            expected, expected_mask = text_states(clip.text, short)
    assert torch.equal(mask, expected_mask)
    torch.testing.assert_close(states[mask], expected[mask], atol=1e-5, rtol=1e-4)
