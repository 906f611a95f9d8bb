"""Evaluation prompts with their expected concept, style and background, as JSON lines. No torch here."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PROMPTS_FOLDER = "prompts"  # beside a checkpoint's weights, with one file for each set
FIELDS = {"prompt", "concept", "style", "background"}


class InvalidPrompts(ValueError):
    """A prompt, or a file of prompts, that cannot be used; the message names the line or the prompt."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text with what it asks for: concepts (hexcodes, any of which is right), style and background."""

    text: str
    concepts: tuple[str, ...] = ()
    style: str | None = None
    background: str | None = None

    def to_json(self) -> str:
        """The prompt as one line of a file for `read_prompts`."""
        concept = self.concepts[0] if len(self.concepts) == 1 else list(self.concepts) or None
        fields = {"prompt": self.text, "concept": concept, "style": self.style, "background": self.background}
        return json.dumps({name: value for name, value in fields.items() if value is not None})


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """Read prompts from a file of JSON lines.

    A line has a `prompt` and any of `concept` (a hexcode or several), `style` and `background`.

    Raises:
        InvalidPrompts: the file is missing, empty or has an invalid line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidPrompts(f"{path} cannot be read: {error}") from None
    prompts = tuple(
        _parse(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()
    )
    if not prompts:
        raise InvalidPrompts(f"{path} holds no prompts")
    return prompts


def read_prompt_sets(folder: Path) -> dict[str, tuple[Prompt, ...]]:
    """Read the prompt sets that come with a checkpoint, by name; empty if it has none."""
    return {file.stem: read_prompts(file) for file in sorted((folder / PROMPTS_FOLDER).glob("*.jsonl"))}


def write_prompts(path: Path, prompts: Iterable[Prompt]) -> None:
    """Write a file for `read_prompts`."""
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
        raise InvalidPrompts(f"{where}: an object with a prompt is expected")
    if unknown := fields.keys() - FIELDS:
        raise InvalidPrompts(
            f"{where}: {', '.join(sorted(unknown))} is not a field; allowed: {', '.join(sorted(FIELDS))}"
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
