"""Emoji in a text: where they are, and their names in a checkpoint that knows them by name.

An emoji may be several characters (Unicode Technical Standard 51): a skin tone or a variation selector after
another character, a flag of two letters or of tags, a keycap, or several emoji joined by zero-width joiners.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from safelight.models.checkpoints.json_files import CheckpointError, read_json

FILE = "emoji_names.json"
TONES = "\U0001f3fb-\U0001f3ff"
PICTOGRAPHS = (
    "\xa9\xae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u24c2\u25a0-\u27bf\u2900-\u297f\u2b00-\u2bff"
    "\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
)
ELEMENT = (
    "(?:[\U0001f1e6-\U0001f1ff]{2}"
    "|[0-9#*]\ufe0f?\u20e3"
    f"|[{PICTOGRAPHS}](?:[\ufe0e\ufe0f]|[{TONES}])*[\U000e0020-\U000e007f]*)"
)
EMOJI = re.compile(f"{ELEMENT}(?:\u200d{ELEMENT})*")
# Signs of ordinary text, such as the one of a trade mark, are emoji only if a selector says so.
FIRST_PICTOGRAPH = "\u2190"
EMOJI_SELECTOR, JOINER = "\ufe0f", "\u200d"
NOT_IN_NAMES = re.compile(f"[\ufe0e\ufe0f{TONES}]")
# Couples have one character; with a skin tone for each person they are sequences.
COUPLES = {
    "👩\u200d🤝\u200d👨": "👫",
    "👨\u200d🤝\u200d👨": "👬",
    "👩\u200d🤝\u200d👩": "👭",
    "🧑\u200d❤\u200d🧑": "💑",
    "🧑\u200d❤\u200d💋\u200d🧑": "💏",
    "🫱\u200d🫲": "🤝",
}


def read_names(folder: Path) -> dict[str, str]:
    """The names by emoji, without variation selectors, in `folder`; none if it has no such file."""
    path = folder / FILE
    if not path.exists():
        return {}
    names = read_json(path)
    if not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{path} must hold a name for each emoji")
    return names


def write_names(names: Mapping[str, str], folder: Path) -> None:
    """Write `names` by hexadecimal code points, such as `1f469-200d-1f680`, for `read_names`."""
    table = {"".join(chr(int(code, 16)) for code in hexcode.split("-")): names[hexcode] for hexcode in names}
    text = json.dumps(dict(sorted(table.items())), ensure_ascii=False, indent=0)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def split_emoji(text: str) -> Iterator[tuple[str, bool]]:
    """`text` in pieces: each emoji, and what is between; the flag says which."""
    end = 0
    for match in EMOJI.finditer(text):
        if match[0] < FIRST_PICTOGRAPH and not {EMOJI_SELECTOR, JOINER, "\u20e3"} & set(match[0]):
            continue
        yield text[end : match.start()], False
        yield match[0], True
        end = match.end()
    yield text[end:], False


def name_of(emoji: str, names: Mapping[str, str]) -> str | None:
    """The name of `emoji` in any skin tone; None for one without a name."""
    plain = NOT_IN_NAMES.sub("", emoji)
    return names.get(COUPLES.get(plain, plain))
