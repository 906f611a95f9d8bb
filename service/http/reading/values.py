"""How the value of each field may be written, beside the form that the schema of the request has.

A reader returns what a value means, and a value that it does not understand as it is: the request's own
validation then refuses it in a sentence. `None` means the default.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from safelight.pipeline.catalog.model_info import MAX_SEED
from safelight.service.http.reading.numbers import read_integer, read_number
from safelight.service.http.translation import random_seed

TEXT_INTEGERS = 10**400  # the largest that is read as text, about as long as the longest number in a text
FLAGS = {"true": True, "1": True, "false": False, "0": False, "": None}
Reader = Callable[[object], object]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value: how it is read, and what the answer says about a value that was written otherwise."""

    read: Reader
    note: str


def _choice(synonyms: Mapping[str, str]) -> Reader:
    """A reader of words in any case; `synonyms` are further words."""

    def read(value: object) -> object:
        if not isinstance(value, str):
            return value
        word = value.strip(" ").lower()
        return synonyms.get(word, word) if word else None

    return read


def _read_flag(value: object) -> object:
    if isinstance(value, str):
        return FLAGS.get(value.strip(" ").lower(), value)
    return bool(value) if type(value) in (int, float) and value in (0, 1) else value


def _blank_or(read: Reader) -> Reader:
    """A reader that takes a blank text for the default."""
    return lambda value: None if isinstance(value, str) and not value.strip(" ") else read(value)


def _read_seed(value: object) -> object:
    """A whole number; -1 is a random one, and others are taken modulo 2**53."""
    seed = read_integer(value)
    if isinstance(seed, bool) or not isinstance(seed, int):
        return value
    return random_seed() if seed == -1 else seed % (MAX_SEED + 1)


def _read_pair(value: object) -> object:
    """Two numbers in ascending order; as text `[0.2, 0.8]` or `0.2, 0.8`."""
    items = value
    if isinstance(items, str):
        items = items.strip(" ").removeprefix("[").removesuffix("]").split(",")
    if not isinstance(items, list):
        return value
    numbers = [read_number(item) for item in items]
    shares = [number for number in numbers if type(number) is int or type(number) is float]
    return sorted(shares) if len(shares) == len(numbers) == 2 else value


def _read_text(value: object) -> object:
    number = read_integer(value) if isinstance(value, float) else value
    return str(number) if type(number) is int and abs(number) <= TEXT_INTEGERS else value


def _only(*types: type) -> Reader:
    """A reader of a field without effect: a value of another type means nothing."""
    return lambda value: value if type(value) in types else None


INTEGER = Kind(_blank_or(read_integer), "read as a whole number")
NUMBER = Kind(_blank_or(read_number), "read as a number")
SEED = Kind(_blank_or(_read_seed), "a seed is between 0 and 2^53 - 1: -1 is random, others modulo 2^53")
FLAG = Kind(_read_flag, "read as true or false")
WORD = Kind(_choice({}), "read in small letters")
OUTPUT_FORMATS = {
    "jpg": "jpeg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/jpg": "jpeg",
    "image/webp": "webp",
}
OUTPUT_FORMAT = Kind(_choice(OUTPUT_FORMATS), "read as a file format")
RESPONSE_FORMATS = {"b64": "b64_json", "base64": "b64_json"}
RESPONSE_FORMAT = Kind(_choice(RESPONSE_FORMATS), "read as b64_json")
PAIR = Kind(_blank_or(_read_pair), "read as two numbers in ascending order")
TEXT = Kind(_read_text, "read as text")
NO_TEXT = Kind(_only(str), "without effect")
NO_INTEGER = Kind(_only(int), "without effect")
NO_OBJECT = Kind(_only(dict), "without effect")

# Sizes, solvers, spacings and models are read by what the served model has.
KINDS: dict[str, Kind] = {
    "n": INTEGER,
    "response_format": RESPONSE_FORMAT,
    "output_format": OUTPUT_FORMAT,
    "output_compression": INTEGER,
    "stream": FLAG,
    "partial_images": INTEGER,
    "num_inference_steps": INTEGER,
    "guidance_scale": NUMBER,
    "eta": NUMBER,
    "guidance_interval": PAIR,
    "guidance_stride": INTEGER,
    "guidance_rescale": NUMBER,
    "seed": SEED,
    "deadline_ms": INTEGER,
    "priority": INTEGER,
    "quality": WORD,
    "style": WORD,
    "background": WORD,
    "user": TEXT,
    "safety_identifier": TEXT,
    "moderation": NO_TEXT,
    "complexity": NO_TEXT,
    "svg": NO_OBJECT,
    "frame_count": NO_INTEGER,
    "frame_duration_ms": NO_INTEGER,
}


def same(first: object, second: object) -> bool:
    """Whether two values are the same in JSON: 1, 1.0 and true are not."""
    return type(first) is type(second) and json.dumps(first) == json.dumps(second)
