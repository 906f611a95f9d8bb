"""Stage `prompts`: draw the evaluation prompts with a fixed seed; they are committed beside the weights."""

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from safelight.models.recipes.emoji import data, natural
from safelight.models.recipes.emoji.captions import (
    COLOURS,
    STYLES,
    WHITE,
    Concept,
    with_background,
    with_style,
)
from safelight.pipeline.evaluation.prompts import PROMPTS_FOLDER, Prompt, write_prompts

SEED, PER_SET = 0, 500

T = TypeVar("T")


def run(work: Path, output: Path) -> None:
    """Write one file for each set into `output/prompts`."""
    sets = make_sets(data.load(work).images)
    for name, prompts in sets.items():
        write_prompts(output / PROMPTS_FOLDER / f"{name}.jsonl", prompts)
    print(f"prompts: {', '.join(f'{len(prompts)} {name}' for name, prompts in sets.items())}")


def make_sets(images: Iterable[data.EmojiImage]) -> dict[str, list[Prompt]]:
    """Make `PER_SET` prompts of each kind.

    Returns:
        The prompts by the name of their set:
        - `names`: concepts by their plain name;
        - `styled`: (concept, style) pairs that the DiT was trained on;
        - `held-out`: pairs that it was not trained on, repeated as needed, each time with other noise;
        - `backgrounds`: concepts on colours that it may have been trained on;
        - `held-out-backgrounds`: concepts on colours that it was not trained on;
        - `keywords`: two or three keywords of a concept without its name. Any concept with all of them is
          right;
        - `natural`: natural captions that no part of the model was trained on.
    """
    images = tuple(images)
    concepts = list(dict.fromkeys(image.concept for image in images))
    trained = [image for image in images if not image.held_out_from_dit]
    held_out = [image for image in images if image.held_out_from_dit]
    coloured = [  # concept, colour, whether it may have been trained
        (c, colour, data.EmojiImage(c, STYLES[0]).shown_on(colour))
        for c in concepts
        for colour in COLOURS
        if colour != WHITE
    ]
    return {
        "names": [Prompt(c.label, (c.hexcode,)) for c in _some(concepts)],
        "styled": [_styled(image) for image in _some(trained)],
        "held-out": [_styled(image) for image in _repeated(held_out)],
        "backgrounds": [
            _on_background(c, colour) for c, colour, _ in _some([pair for pair in coloured if pair[2]])
        ],
        "held-out-backgrounds": [
            _on_background(c, colour) for c, colour, _ in _some([pair for pair in coloured if not pair[2]])
        ],
        "keywords": list(islice(_by_keywords(concepts), PER_SET)),
        "natural": _some(list(_natural(concepts))),
    }


def _styled(image: data.EmojiImage) -> Prompt:
    return Prompt(with_style(image.concept.label, image.style), (image.concept.hexcode,), image.style)


def _on_background(concept: Concept, colour: str) -> Prompt:
    return Prompt(with_background(concept.label, colour), (concept.hexcode,), background=colour)


def _by_keywords(concepts: list[Concept]) -> Iterator[Prompt]:
    rng = random.Random(SEED)
    for concept in _shuffled(concepts):
        if len(concept.keywords) >= 2:
            words = rng.sample(concept.keywords, min(len(concept.keywords), rng.randint(2, 3)))
            matching = [c.hexcode for c in concepts if {*words} <= {c.label, *c.keywords}]
            yield Prompt(" ".join(words), tuple(matching))


def _natural(concepts: list[Concept]) -> Iterator[Prompt]:
    captions = natural.held_out_captions()
    for concept in concepts:
        for caption in captions.get(concept.hexcode, ()):
            yield Prompt(caption, (concept.hexcode,))


def _some(pool: list[T]) -> list[T]:
    return _shuffled(pool)[:PER_SET]


def _repeated(pool: list[T]) -> list[T]:
    """`PER_SET` items of the shuffled pool, repeated from its start as needed."""
    shuffled = _shuffled(pool)
    return [shuffled[i % len(shuffled)] for i in range(PER_SET)]


def _shuffled(pool: list[T]) -> list[T]:
    return random.Random(SEED).sample(pool, len(pool))
