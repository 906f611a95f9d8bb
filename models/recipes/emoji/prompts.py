"""Stage `prompts`: the sets that the model is examined on, drawn by a fixed seed and committed beside its weights."""

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from safelight.models.recipes.emoji import data
from safelight.models.recipes.emoji.captions import COLOURS, STYLES, WHITE, Concept, on_background, styled
from safelight.pipeline.evaluation.prompts import SETS, Prompt, write_prompts

SEED, PER_SET = 0, 500

T = TypeVar("T")


def run(work: Path, output: Path) -> None:
    """Write one file a set into `output/prompts`."""
    sets = make_sets(data.load(work).images)
    for name, prompts in sets.items():
        write_prompts(output / SETS / f"{name}.jsonl", prompts)
    print(f"prompts: {', '.join(f'{len(prompts)} {name}' for name, prompts in sets.items())}")


def make_sets(images: Iterable[data.EmojiImage]) -> dict[str, list[Prompt]]:
    """`PER_SET` prompts of each kind.

    `names`: a concept by its plain name. `styled`: (concept, style) pairs that were trained. `held-out`: those that were not,
    as often as it takes, each time with other noise. `backgrounds`: concepts on colours that they may have been trained on;
    `held-out-backgrounds`: on colours that they were not. `keywords`: two or three keywords of a concept, without its name; any
    concept that bears them all is right.
    """
    images = tuple(images)
    concepts = list(dict.fromkeys(image.concept for image in images))
    trained = [p for p in images if not p.held_out_from_dit]
    kept_back = [p for p in images if p.held_out_from_dit]
    on_colours = [
        (c, colour, data.EmojiImage(c, STYLES[0]).shown_on(colour))
        for c in concepts
        for colour in COLOURS
        if colour != WHITE
    ]
    return {
        "names": [Prompt(c.label, (c.hexcode,)) for c in _some(concepts)],
        "styled": [_styled(p) for p in _some(trained)],
        "held-out": [_styled(p) for p in _often(kept_back)],
        "backgrounds": [_on(c, colour) for c, colour, _ in _some([pair for pair in on_colours if pair[2]])],
        "held-out-backgrounds": [
            _on(c, colour) for c, colour, _ in _some([pair for pair in on_colours if not pair[2]])
        ],
        "keywords": list(islice(_by_keywords(concepts), PER_SET)),
    }


def _styled(image: data.EmojiImage) -> Prompt:
    return Prompt(styled(image.concept.label, image.style), (image.concept.hexcode,), image.style)


def _on(concept: Concept, colour: str) -> Prompt:
    return Prompt(on_background(concept.label, colour), (concept.hexcode,), background=colour)


def _by_keywords(concepts: list[Concept]) -> Iterator[Prompt]:
    rng = random.Random(SEED)
    for concept in _shuffled(concepts):
        if len(concept.keywords) >= 2:
            words = rng.sample(concept.keywords, min(len(concept.keywords), rng.randint(2, 3)))
            bearers = [c.hexcode for c in concepts if {*words} <= {c.label, *c.keywords}]
            yield Prompt(" ".join(words), tuple(bearers))


def _some(pool: list[T]) -> list[T]:
    return _shuffled(pool)[:PER_SET]


def _often(pool: list[T]) -> list[T]:
    """`PER_SET` of `pool`, all of it as often as it takes."""
    shuffled = _shuffled(pool)
    return [shuffled[i % len(shuffled)] for i in range(PER_SET)]


def _shuffled(pool: list[T]) -> list[T]:
    return random.Random(SEED).sample(pool, len(pool))
