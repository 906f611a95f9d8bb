"""Emoji in prompts of `emoji-128`: each means its name, and the others are listed as unknown."""

import json
from collections.abc import Iterator

import pytest

from safelight.models.find_checkpoint import find_checkpoint
from safelight.models.text.clip import ClipTextTower
from safelight.models.text.emoji_names import read_names

FOLDER = find_checkpoint("emoji-128").folder / "text_encoder"


@pytest.fixture(scope="module")
def tower() -> ClipTextTower:
    return ClipTextTower(FOLDER)


def test_the_table_holds_every_concept_of_the_model_by_its_name() -> None:
    entries = json.loads((FOLDER.parent / "gallery.json").read_text())["entries"]
    concepts = {
        "".join(chr(int(code, 16)) for code in entry["hexcode"].split("-")): entry["label"]
        for entry in entries
    }
    assert read_names(FOLDER) == concepts and len(concepts) == 1644


def test_every_emoji_is_read_as_its_name(tower: ClipTextTower) -> None:
    for emoji, name in read_names(FOLDER).items():
        tokenised = tower.tokenise(f"{emoji}\ufe0f" if len(emoji) == 1 else emoji)
        assert tokenised.unknown_words == (), emoji
        assert tokenised.ids.tolist() == tower.tokenise(name).ids.tolist(), emoji


@pytest.mark.parametrize(
    ("prompt", "meaning"),
    [
        ("🍎", "red apple"),
        ("🍎 on a table", "red apple on a table"),
        ("3d🍎on a blue background", "3d red apple on a blue background"),
        ("🍎🚗", "red apple automobile"),
        ("(🍎:1.3)", "red apple"),
        ("👍🏽", "thumbs up"),
        ("👩🏽\u200d🚀", "woman astronaut"),
        ("👩🏽\u200d🤝\u200d👨🏻", "woman and man holding hands"),
        ("🧑🏻\u200d❤\ufe0f\u200d💋\u200d🧑🏿", "kiss"),
        ("❤", "red heart"),
        ("❤\ufe0f", "red heart"),
        ("❤\ufe0e", "red heart"),
        ("5\ufe0f\u20e3", "keycap: 5"),
        ("5\u20e3", "keycap: 5"),
        ("©\ufe0f", "copyright"),
        ("Ⓜ", "circled M"),
    ],
)
def test_an_emoji_means_its_name(tower: ClipTextTower, prompt: str, meaning: str) -> None:
    tokenised = tower.tokenise(prompt)
    assert tokenised.ids.tolist() == tower.tokenise(meaning).ids.tolist()
    assert tokenised.num_tokens > 0 and tokenised.unknown_words == ()


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [
        ("apple 🇫🇷", ("🇫🇷",)),
        ("🏳\ufe0f\u200d🌈 apple", ("🏳\ufe0f\u200d🌈",)),
        (
            "apple 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
            ("🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",),
        ),
        ("🍎\u200d🚗 apple", ("🍎\u200d🚗",)),  # joined by nobody else
        ("apple 🏽", ("🏽",)),
        ("♪ apple → ∞ €", ("♪", "→", "∞", "€")),
        ("apple ™", ("™",)),  # a sign of ordinary text, without the selector that makes it an emoji
        ("सेब apple ไทย 苹果 が", ("सेब", "ไทย", "苹果", "が")),
        ("apple \U000f0000", ("\U000f0000",)),
        ("apple! … — (\u200b) \ufe0f", ()),
    ],
)
def test_what_cannot_be_read_is_listed_and_has_no_effect(
    tower: ClipTextTower, prompt: str, unknown: tuple[str, ...]
) -> None:
    tokenised = tower.tokenise(prompt)
    assert tokenised.unknown_words == unknown
    if unknown:
        assert tokenised.ids.tolist() == tower.tokenise("apple").ids.tolist()


def test_every_piece_of_a_text_is_read_once(tower: ClipTextTower, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the longest prompt of emoji costs what a short one does."""
    pieces: list[str] = []
    words = tower._pairs.words

    def record(text: str) -> Iterator[tuple[str, bool]]:
        pieces.append(text)
        return words(text)

    monkeypatch.setattr(tower._pairs, "words", record)
    tokenised = tower.tokenise("🍎 and 🇫🇷" * 4_000)
    assert sorted(pieces) == ["", " and ", "red apple", "🇫🇷"]
    assert tokenised.num_tokens == 4_000 * tower.tokenise("red apple and").num_tokens
    assert tokenised.truncated and tokenised.unknown_words == ("🇫🇷",)


def test_a_repeated_piece_means_the_same_each_time(tower: ClipTextTower) -> None:
    repeated = tower.tokenise("🍎 on 🚗 on 🍎 ட 🍎ட")
    assert (
        repeated.ids.tolist() == tower.tokenise("red apple on automobile on red apple red apple").ids.tolist()
    )
    assert repeated.unknown_words == ("ட",)


def test_digits_and_signs_are_no_emoji(tower: ClipTextTower) -> None:
    assert tower.tokenise("5").ids.tolist() != tower.tokenise("keycap: 5").ids.tolist()
    assert tower.tokenise("5").unknown_words == ()
