"""Prompts with what a right image would show, as JSON lines. No torch here."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SETS = "prompts"  # the folder beside a checkpoint's weights with its own sets, one file each
FIELDS = {"prompt", "concept", "style", "background"}


class InvalidPrompts(ValueError):
    """A file of prompts that cannot be used; the message names the line."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text, and the concepts (hexcodes, any of which is right), style and background that it asks for, where it does."""

    text: str
    concepts: tuple[str, ...] = ()
    style: str | None = None
    background: str | None = None

    def to_json(self) -> str:
        """One line of a file that `read_prompts` reads."""
        concept = self.concepts[0] if len(self.concepts) == 1 else list(self.concepts) or None
        fields = {"prompt": self.text, "concept": concept, "style": self.style, "background": self.background}
        return json.dumps({name: value for name, value in fields.items() if value is not None})


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """The prompts of a file of JSON lines: `prompt` and any of `concept` (a hexcode, or several), `style`, `background`.

    Raises `InvalidPrompts` for a file that is missing, empty or wrong in a line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidPrompts(f"{path} cannot be read: {error}") from None
    found = tuple(
        _parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()
    )
    if not found:
        raise InvalidPrompts(f"{path} holds no prompts")
    return found


def own_sets(folder: Path) -> dict[str, tuple[Prompt, ...]]:
    """The sets that come with a checkpoint, by name; none for a checkpoint without."""
    return {file.stem: read_prompts(file) for file in sorted((folder / SETS).glob("*.jsonl"))}


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """The file that `read_prompts` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{prompt.to_json()}\n" for prompt in prompts), encoding="utf-8")


def _parse(line: str, where: str) -> Prompt:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidPrompts(f"{where}: not JSON ({error})") from None
    if (
        not isinstance(fields, dict)
        or not isinstance(fields.get("prompt"), str)
        or not fields["prompt"].strip()
    ):
        raise InvalidPrompts(f"{where}: an object with a prompt is wanted")
    if unknown := fields.keys() - FIELDS:
        raise InvalidPrompts(
            f"{where}: {', '.join(sorted(unknown))} is no field; allowed: {', '.join(sorted(FIELDS))}"
        )
    concept = fields.get("concept")
    concepts = tuple(concept) if isinstance(concept, list) else () if concept is None else (concept,)
    for name, value in (
        *(("concept", c) for c in concepts),
        ("style", fields.get("style")),
        ("background", fields.get("background")),
    ):
        if value is not None and not isinstance(value, str):
            raise InvalidPrompts(f"{where}: {name} must be a text")
    return Prompt(fields["prompt"], concepts, fields.get("style"), fields.get("background"))
