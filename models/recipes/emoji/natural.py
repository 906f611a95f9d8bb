"""Natural captions: the words in which people ask for each concept, beside its name and its keywords.

`natural.jsonl` is data of our own, written for this recipe: a line for each concept of the data set, with its
code points and at least six captions, such as `a bunch of bananas` or `flying a kite on a windy day`. Each
caption belongs to one concept, and names neither a style nor a background.
"""

import hashlib
import json
from pathlib import Path

CAPTIONS_FILE = Path(__file__).with_name("natural.jsonl")
HELD_OUT_MODULUS = 10  # one caption in so many is held out


def is_held_out(caption: str) -> bool:
    """Whether no part of the model is trained on `caption`, so that it can measure words never seen.

    The rule looks at the caption alone: it stays the same when captions or concepts are added.
    """
    digest = hashlib.sha256(caption.encode()).digest()
    return int.from_bytes(digest, "big") % HELD_OUT_MODULUS == 0


def load() -> dict[str, tuple[str, ...]]:
    """All natural captions by the code points of their concept (`Concept.hexcode`)."""
    with CAPTIONS_FILE.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return {record["concept"]: tuple(record["captions"]) for record in records}


def training_captions() -> dict[str, tuple[str, ...]]:
    """The captions to train on: at least four for each concept."""
    return _select(held_out=False)


def held_out_captions() -> dict[str, tuple[str, ...]]:
    """The captions to measure with; a concept may have none."""
    return _select(held_out=True)


def _select(held_out: bool) -> dict[str, tuple[str, ...]]:
    return {
        concept: tuple(caption for caption in captions if is_held_out(caption) == held_out)
        for concept, captions in load().items()
    }
