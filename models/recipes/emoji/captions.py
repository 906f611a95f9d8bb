"""The caption grammar of `emoji-128`: the captions it is trained on, and so the prompts it understands.

A caption names a concept (its label, its keywords, or both), optionally with an article, a style and a
background.
"""

import random
from collections.abc import Sequence
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
# The share of captions of images on white that name the background; any other background is always named.
WHITE_NAMED_SHARE = 0.1

STYLED_SHARE = 0.6  # the share of captions that name the style
MAX_KEYWORDS = 4
NATURAL_SHARE = 0.4  # the share of captions about a natural caption, where these are trained


@dataclass(frozen=True, slots=True)
class Concept:
    """One emoji: its code points, its English name and its search keywords."""

    hexcode: str
    label: str
    keywords: tuple[str, ...]


def article(noun: str) -> str:
    """`a` or `an` before `noun`."""
    return "an" if noun[:1].lower() in "aeiou" else "a"


def with_style(caption: str, style: str) -> str:
    """The simplest caption with a style: `3d red apple`."""
    return STYLE_PHRASES[style][0].format(caption)


def with_background(caption: str, colour: str) -> str:
    """The simplest caption with a background: `red apple on a blue background`."""
    return BACKGROUND_PHRASES[0].format(caption, colour)


def sample_caption(
    concept: Concept, style: str, colour: str, rng: random.Random, natural: Sequence[str] = ()
) -> str:
    """Draw a caption from the grammar for `concept` in `style` on a background of `colour`.

    Args:
        concept: what the caption names.
        style: its style, which the caption may name.
        colour: its background, which the caption names unless it is white.
        rng: draws the caption.
        natural: natural captions of the concept; `NATURAL_SHARE` of the captions are about one of them.
    """
    is_natural = bool(natural) and rng.random() < NATURAL_SHARE
    subject = rng.choice(natural) if is_natural else _subject(concept, rng)
    return sample_frame(style, colour, rng).format(subject)


def sample_frame(style: str, colour: str, rng: random.Random) -> str:
    """Draw the words around a subject, which may name style and background: `flat {} on blue`, or `{}`."""
    frame = "{}"
    if rng.random() < STYLED_SHARE:
        frame = rng.choice(STYLE_PHRASES[style])
    if colour != WHITE or rng.random() < WHITE_NAMED_SHARE:
        frame = rng.choice(BACKGROUND_PHRASES).format(frame, colour)
    return frame


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
