"""models/text/spelling.py: words one edit from a known word are read as that word, and reported."""

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safelight.models.find_checkpoint import ensure_tiny
from safelight.models.text.clip import ClipTextTower
from safelight.models.text.spelling import MAX_LETTERS, Spelling, read_words, write_words

WORDS = ("apple", "rocket", "banana", "apply", "bear", "beer", "a", "on")  # the most frequent first
SPELLING = Spelling(WORDS)


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("aple", "apple"),  # a letter is missing
        ("appple", "apple"),  # one too many
        ("epple", "apple"),  # another letter, at the start
        ("banano", "banana"),  # and at the end
        ("rokcet", "rocket"),  # neighbours exchanged
        ("rockets", "rocket"),
        ("abear", "bear"),
        ("appla", "apple"),  # "apply" is as near, and less frequent
        ("bexr", "bear"),
        ("apple", None),  # known
        ("apply", None),  # known, though "apple" is near and more frequent
        ("aplpy", "apply"),
        ("aplle", "apple"),
        ("appel", "apple"),
        ("ba", None),  # too short
        ("ber", None),
        ("applz3", None),  # no word
        ("aqqle", None),  # two edits
        ("elppa", None),
        ("x" * (MAX_LETTERS + 1), None),
        ("", None),
    ],
)
def test_the_nearest_known_word_is_read(word: str, read: str | None) -> None:
    assert SPELLING.correct(word) == read


def distance(a: str, b: str) -> int:
    """Optimal string alignment, by its recurrence."""
    table = [[i + j if not i * j else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            cost = a[i - 1] != b[j - 1]
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + cost)
            if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
                table[i][j] = min(table[i][j], table[i - 2][j - 2] + 1)
    return table[-1][-1]


@given(st.text("abelpr", min_size=4, max_size=7))
def test_it_is_one_edit_away_and_the_most_frequent_such_word(word: str) -> None:
    near = [candidate for candidate in WORDS if distance(word, candidate) <= 1]
    expected = None if word in WORDS or not near else near[0]
    assert SPELLING.correct(word) == expected


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ensure_tiny() / "text_encoder", tmp_path / "text_encoder")
    write_words(WORDS, tmp_path / "text_encoder")
    return tmp_path / "text_encoder"


def test_a_tower_reads_and_reports_corrections(folder: Path) -> None:
    tower = ClipTextTower(folder)
    typed, right = tower.tokenise("An APLE on a Rokcet aple"), tower.tokenise("an apple on a rocket apple")
    assert torch.equal(typed.ids, right.ids) and typed.num_tokens == right.num_tokens
    assert typed.corrected_words == (("aple", "apple"), ("rokcet", "rocket"))
    assert right.corrected_words == () and typed.unknown_words == ()
    assert tower.read("aple").corrected_words == (("aple", "apple"),)


def test_without_a_list_words_stay_as_they_are(folder: Path) -> None:
    (folder / "words.txt").unlink()
    assert read_words(folder) == ()
    assert ClipTextTower(folder).tokenise("aple").corrected_words == ()


def test_an_unknown_word_is_reported_as_it_was_typed(folder: Path) -> None:
    tower = ClipTextTower(folder)
    tower._known[tower._pairs.encode("apple")] = False
    tokenised = tower.tokenise("a red aple")
    assert tokenised.unknown_words == ("aple",) and tokenised.corrected_words == ()
