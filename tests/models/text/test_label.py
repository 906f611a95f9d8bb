"""Class labels by number and by name; unknown and ambiguous labels are refused with suggestions."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.text.label import LabelTower
from safelight.models.text.reading import UnreadableText

NAMES = {
    0: "tench, Tinca tinca", 1: "goldfish, Carassius auratus", 2: "great white shark, white shark",
    3: "crane", 4: "crane", 5: "Cardigan, Cardigan Welsh corgi", 6: "cardigan", 7: "maillot",
    8: "maillot, tank suit",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path, {str(number): label for number, label in NAMES.items()})


def write(folder: Path, id2label: object) -> Path:
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text(json.dumps({"num_embeds_ada_norm": 10}))
    index = {"_class_name": "DiTPipeline"} | ({} if id2label is None else {"id2label": id2label})
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1", 1), (" 9 ", 9), ("", 10), ("  ", 10), ("goldfish", 1), ("Carassius auratus", 1),
        ("goldfish, Carassius auratus", 1), ("  GoldFish\n", 1), ("TENCH, tinca TINCA", 0),
        ("white shark", 2), ("tank suit", 8),
        # The strictest match decides: the same spelling before any case, the whole label before one name.
        ("maillot", 7), ("Cardigan", 5), ("cardigan", 6), ("CARDIGAN", 6),
    ],
)  # fmt: skip
def test_a_label_is_read_as_its_class(folder: Path, text: str, number: int) -> None:
    tower = LabelTower(folder)
    reading = tower.read(text)
    assert reading.pooled is not None and reading.pooled.tolist() == [number]
    assert reading.pooled.dtype == torch.int64
    assert (reading.states.shape, reading.mask.shape) == ((0, 0), (0,))
    assert (reading.num_tokens, reading.truncated) == (int(number < 10), False)
    assert tower.labels.null_class == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "goldfihs",
            "'goldfihs' is not a class of this model: "
            "give a number from 0 to 9, or a name, for instance goldfish",
        ),
        (
            "White Sharks",
            "'White Sharks' is not a class of this model: "
            "give a number from 0 to 9, or a name, for instance white shark",
        ),
        (
            "a photo of zebras",
            "'a photo of zebras' is not a class of this model: "
            "give a number from 0 to 9, or a name such as tench",
        ),
        ("10", "'10' is not a class of this model: give a number from 0 to 9"),
        ("-1", "'-1' is not a class of this model: give a number from 0 to 9"),
        ("crane", "'crane' is the name of 2 classes: give the number, 3 or 4"),
    ],
)
def test_an_unknown_or_ambiguous_label_is_refused_with_suggestions(
    folder: Path, text: str, message: str
) -> None:
    with pytest.raises(UnreadableText) as error:
        LabelTower(folder).read(text)
    assert str(error.value).startswith(message)


def test_without_names_numbers_are_allowed(tmp_path: Path) -> None:
    tower = LabelTower(write(tmp_path, None))
    pooled = tower.read("7").pooled
    assert pooled is not None and pooled.tolist() == [7]
    with pytest.raises(
        UnreadableText, match="'goldfish' is not a class of this model: give a number from 0 to 9$"
    ):
        tower.read("goldfish")


@pytest.mark.parametrize(
    ("id2label", "match"),
    [
        (["tench"], "id2label is not an object"),
        ({"tench": "0"}, r"id2label\['tench'\] is '0', expected a name for one of the classes 0 to 9"),
        ({"10": "tench"}, r"id2label\['10'\]"),
        ({"0": 3}, r"id2label\['0'\] is 3"),
    ],
)
def test_malformed_labels_are_named(tmp_path: Path, id2label: object, match: str) -> None:
    with pytest.raises(CheckpointError, match=rf"model_index\.json: {match}"):
        LabelTower(write(tmp_path, id2label))


@pytest.mark.parametrize("number", [None, 0, "1000", True])
def test_a_wrong_number_of_classes_is_named(folder: Path, number: object) -> None:
    (folder / "transformer" / "config.json").write_text(json.dumps({"num_embeds_ada_norm": number}))
    with pytest.raises(
        CheckpointError,
        match=r"transformer/config\.json: num_embeds_ada_norm is .*, expected the number of classes",
    ):
        LabelTower(folder)


def test_reading_a_label_takes_no_flops(folder: Path) -> None:
    assert LabelTower(folder).flops_per_text == 0


def test_names_are_looked_up_without_torch(folder: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path; "
        "from safelight.models.text.label import Labels;"
        f" print(Labels(Path({str(folder)!r})).find('goldfish'))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.stdout.strip() == "1", process.stderr
