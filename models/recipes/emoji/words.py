"""The words of the captions, by which misspelt words of prompts are recognised."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from safelight.models.recipes.emoji import data
from safelight.models.recipes.emoji.captions import BACKGROUND_PHRASES, COLOURS, STYLE_PHRASES
from safelight.models.text.clip import ClipTextTower

WORD = re.compile("[a-z]+")


def caption_words(dataset: data.Dataset, natural: Iterable[str], tower: ClipTextTower) -> list[str]:
    """The words of the grammar and of `natural` captions that `tower` knows, the most frequent first."""
    counts = Counter(
        word for caption in (*_grammar(dataset), *natural) for word in WORD.findall(caption.lower())
    )
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return [word for word in ranked if not tower.tokenise(word).unknown_words]


def _grammar(dataset: data.Dataset) -> Iterator[str]:
    """Each concept's name and keywords once, and the words of styles and backgrounds."""
    concepts = {image.concept for image in dataset.images}
    for concept in sorted(concepts, key=lambda concept: concept.hexcode):
        yield from (concept.label, *concept.keywords)
    for phrases in STYLE_PHRASES.values():
        yield from (phrase.format("") for phrase in phrases)
    for colour in COLOURS:
        yield from (phrase.format("", colour) for phrase in BACKGROUND_PHRASES)
