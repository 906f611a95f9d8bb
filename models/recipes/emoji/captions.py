"""The caption grammar: what a prompt for `emoji-128` may look like.

A caption names a concept (its label, its keywords, or both), perhaps with an article, a style or a background.
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

WHITE = "white"
COLOURS = {
    WHITE: (255, 255, 255),
    "red": (220, 50, 47),
    "orange": (245, 150, 40),
    "yellow": (250, 220, 80),
    "green": (60, 160, 75),
    "blue": (50, 110, 210),
    "purple": (130, 70, 180),
    "pink": (250, 170, 200),
    "black": (20, 20, 24),
}
BACKGROUND_PHRASES = ("{} on a {} background", "{} on {}", "{}, {} background")
NAME_WHITE = 0.1  # of the captions of images on white say so; any other background is always named

STYLED = 0.6  # of the captions name the style
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


def on_background(caption: str, colour: str) -> str:
    """The plainest caption that asks for a background: `red apple on a blue background`."""
    return BACKGROUND_PHRASES[0].format(caption, colour)


def sample_caption(concept: Concept, style: str, colour: str, rng: random.Random) -> str:
    """One caption for the image of `concept` in `style` on a background of `colour`, drawn from the grammar."""
    subject = _subject(concept, rng)
    if rng.random() < STYLED:
        subject = rng.choice(STYLE_PHRASES[style]).format(subject)
    if colour != WHITE or rng.random() < NAME_WHITE:
        subject = rng.choice(BACKGROUND_PHRASES).format(subject, colour)
    return subject


def _subject(concept: Concept, rng: random.Random) -> str:
    draw = rng.random()
    if draw < 0.30 or not concept.keywords:
        return concept.label
    if draw < 0.45:
        return f"{article(concept.label)} {concept.label}"
    keywords = rng.sample(concept.keywords, min(len(concept.keywords), rng.randint(1, MAX_KEYWORDS)))
    if draw < 0.60:
        return f"{concept.label}, {', '.join(keywords)}"
    return " ".join(keywords)
