"""Prompts of a class-conditional DiT: an ImageNet class by its name or number.

torch is imported only when a text is read, so that the gateway can look names up without it. The embeddings
of the classes are part of the transformer.
"""

from difflib import get_close_matches
from pathlib import Path

from safelight.models.checkpoints.json_files import CheckpointError, read_json
from safelight.models.text.reading import Reading, UnreadableText

NUM_SUGGESTIONS = 3


class Labels:
    """The classes of a checkpoint: names from `model_index.json`, number from the transformer's config.

    A class may have several names ("tench, Tinca tinca"), and two classes may share one ("crane") or differ
    in case only ("Cardigan").
    """

    def __init__(self, folder: Path):
        self.num_classes = _read_num_classes(folder)
        named = _read_names(folder, self.num_classes)
        whole = [(label, number) for number, label in named.items()]
        single = [(name.strip(), number) for number, label in named.items() for name in label.split(",")]
        self._names = list(dict.fromkeys(name for name, _ in single))
        # from the strictest match to the loosest; the first with an answer decides
        self._tables = [_by_name(pairs) for pairs in (whole, single, _any_case(whole), _any_case(single))]

    @property
    def null_class(self) -> int:
        """The index for "no class", the unconditional input of guidance."""
        return self.num_classes

    def find(self, text: str) -> int:
        """The class that `text` names, or the null class if it is empty.

        Raises `UnreadableText` if it names no class or several.
        """
        label = text.strip()
        if not label:
            return self.null_class
        if label.isascii() and label.isdecimal() and int(label) < self.num_classes:
            return int(label)
        for table, name in zip(self._tables, (label, label, label.casefold(), label.casefold()), strict=True):
            if classes := table.get(name):
                return _require_one(classes, label)
        raise UnreadableText(f"{label!r} is not a class of this model: {self._describe_allowed(label)}")

    def _describe_allowed(self, label: str) -> str:
        allowed = f"give a number from 0 to {self.num_classes - 1}"
        if not self._names:
            return allowed
        folded = {name.casefold(): name for name in self._names}
        near = [folded[match] for match in get_close_matches(label.casefold(), folded, NUM_SUGGESTIONS)]
        return f"{allowed}, or a name" + (
            f", for instance {', '.join(near)}" if near else f" such as {self._names[0]}"
        )


class LabelTower:
    """Texts to class indices; a `TextTower` without a network."""

    flops_per_text = 0

    def __init__(self, folder: Path):
        self.labels = Labels(folder)

    def read(self, text: str) -> Reading:
        """No states; `pooled` (1,) is the index of the class, int64. Raises `UnreadableText`."""
        import torch

        number = self.labels.find(text)
        return Reading(
            torch.zeros(0, 0),
            torch.zeros(0, dtype=torch.bool),
            torch.tensor([number]),
            num_tokens=int(number != self.labels.null_class),
            truncated=False,
        )


def _read_num_classes(folder: Path) -> int:
    path = folder / "transformer" / "config.json"
    number = read_json(path).get("num_embeds_ada_norm")
    if type(number) is not int or number < 1:
        raise CheckpointError(f"{path}: num_embeds_ada_norm is {number!r}, expected the number of classes")
    return number


def _read_names(folder: Path, num_classes: int) -> dict[int, str]:
    """Labels by class; none if the index has no `id2label`."""
    path = folder / "model_index.json"
    labels = read_json(path).get("id2label", {})
    if not isinstance(labels, dict):
        raise CheckpointError(f"{path}: id2label is not an object")
    for key, label in labels.items():
        if not (key.isascii() and key.isdecimal() and int(key) < num_classes and isinstance(label, str)):
            raise CheckpointError(
                f"{path}: id2label[{key!r}] is {label!r}, "
                f"expected a name for one of the classes 0 to {num_classes - 1}"
            )
    return {int(key): label for key, label in labels.items()}


def _any_case(pairs: list[tuple[str, int]]) -> list[tuple[str, int]]:
    return [(name.casefold(), number) for name, number in pairs]


def _by_name(pairs: list[tuple[str, int]]) -> dict[str, list[int]]:
    table: dict[str, list[int]] = {}
    for name, number in pairs:
        table.setdefault(name, []).append(number)
    return table


def _require_one(classes: list[int], label: str) -> int:
    numbers = sorted(set(classes))
    if len(numbers) > 1:
        raise UnreadableText(
            f"{label!r} is the name of {len(numbers)} classes: "
            f"give the number, {' or '.join(map(str, numbers))}"
        )
    return numbers[0]
