"""The natural captions are complete, belong to one concept each, and a tenth of them is held out."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from safelight.models.recipes.emoji import natural
from safelight.models.recipes.emoji.captions import STYLES, Concept

WEIGHTS = Path(natural.__file__).parents[2] / "weights" / "emoji-128"
MIN_CAPTIONS, MIN_TRAINED = 5, 4
MAX_WORDS, MAX_LENGTH = 8, 56
# Letters, digits and the marks of a few symbols, with single spaces: what a person types.
CAPTION = re.compile(r"[a-z0-9'\-#*%&!?.:]+( [a-z0-9'\-#*%&!?.:]+)*")

Captions = dict[str, tuple[str, ...]]  # by the code points of their concept


@pytest.fixture(scope="module")
def concepts() -> list[Concept]:
    """The concepts of the embedded model, which are those of the recipe."""
    entries = json.loads((WEIGHTS / "gallery.json").read_text(encoding="utf-8"))["entries"]
    return list(dict.fromkeys(Concept(e["hexcode"], e["label"], tuple(e["keywords"])) for e in entries))


@pytest.fixture(scope="module")
def captions() -> Captions:
    return natural.load()


@pytest.fixture(scope="module")
def wordings(captions: Captions) -> list[str]:
    """The captions of all concepts."""
    return [caption for of_concept in captions.values() for caption in of_concept]


def test_every_concept_has_captions(concepts: list[Concept], captions: Captions) -> None:
    assert list(captions) == [concept.hexcode for concept in concepts]
    assert [concept for concept in captions if len(captions[concept]) < MIN_CAPTIONS] == []
    lines = natural.CAPTIONS_FILE.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(captions), "a concept has two lines"


def test_no_caption_occurs_twice(wordings: list[str]) -> None:
    assert [caption for caption, count in Counter(wordings).items() if count > 1] == []


def test_captions_are_short_and_plain(wordings: list[str]) -> None:
    assert [caption for caption in wordings if not CAPTION.fullmatch(caption)] == []
    assert [caption for caption in wordings if len(caption.split()) > MAX_WORDS] == []
    assert [caption for caption in wordings if len(caption) > MAX_LENGTH] == []


def test_captions_leave_styles_and_backgrounds_to_the_grammar(wordings: list[str]) -> None:
    assert [caption for caption in wordings if {*caption.split()} & {*STYLES, "background"}] == []


def test_no_caption_is_the_name_of_a_concept(concepts: list[Concept], wordings: list[str]) -> None:
    """The grammar already has the concept's own name, and another one's would contradict it."""
    names = {concept.label for concept in concepts}
    assert [caption for caption in wordings if re.sub("^(a|an|the) ", "", caption) in names] == []


def test_about_a_tenth_is_held_out(wordings: list[str]) -> None:
    share = sum(map(natural.is_held_out, wordings)) / len(wordings)
    assert share == pytest.approx(0.1, abs=0.01)


def test_the_held_out_rule_is_stable() -> None:
    """A change of the rule would mix trained and held-out captions."""
    assert natural.is_held_out("sasquatch")
    assert not natural.is_held_out("flying a kite on a windy day")


def test_enough_captions_of_every_concept_are_trained(captions: Captions) -> None:
    trained, held_out = natural.training_captions(), natural.held_out_captions()
    assert [concept for concept in trained if len(trained[concept]) < MIN_TRAINED] == []
    for concept, of_concept in captions.items():
        assert sorted(trained[concept] + held_out[concept]) == sorted(of_concept)
        assert not any(map(natural.is_held_out, trained[concept]))
        assert all(map(natural.is_held_out, held_out[concept]))
