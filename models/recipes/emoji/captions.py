"""The caption grammar: what a prompt for `emoji-128` may look like.

A caption names a concept (its label, its keywords, or both), perhaps a style, perhaps an article.
The grammar is the contract with the user: what is said in training is what is understood in use.
"""

import random
from dataclasses import dataclass

STYLES = ("3d", "flat", "noto")

STYLE_PHRASES = {
    "3d": ("3d {}", "{} 3d", "{}, 3d style", "{} in 3d style"),
    "flat": ("flat {}", "{} flat", "{}, flat style", "{} in flat style"),
    "noto": ("noto {}", "{} noto", "{}, noto style", "{} in noto style"),
}

MAX_KEYWORDS = 4


@dataclass(frozen=True, slots=True)
class Concept:
    """One emoji: its code points, its English name and the words people find it by."""

    hexcode: str
    label: str
    keywords: tuple[str, ...]


def article(noun: str) -> str:
    """`a` or `an` before `noun`."""
    return "an" if noun[:1].lower() in "aeiou" else "a"


def styled(caption: str, style: str) -> str:
    """The plainest caption that asks for `style`: `3d red apple`."""
    return STYLE_PHRASES[style][0].format(caption)


def sample_caption(concept: Concept, style: str, rng: random.Random) -> str:
    """One caption for the picture of `concept` in `style`, drawn from the grammar."""
    subject = _subject(concept, rng)
    if rng.random() < 0.5:
        subject = rng.choice(STYLE_PHRASES[style]).format(subject)
    return subject


def _subject(concept: Concept, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.40 or not concept.keywords:
        return concept.label
    if draw < 0.65:
        return f"{article(concept.label)} {concept.label}"
    keywords = rng.sample(concept.keywords, min(len(concept.keywords), rng.randint(1, MAX_KEYWORDS)))
    if draw < 0.85:
        return f"{concept.label}, {', '.join(keywords)}"
    return " ".join(keywords)
