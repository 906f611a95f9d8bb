"""The requests that programs send in their default configuration, as data: `payloads/*.json`.

A file holds the conversations of one program, read from its public source code. A request has a `path`, the
`json`, or the `form` with the names under which `files` are uploaded, and what the program `reads` of the
answer: a name in `tests.clients.readers.READERS`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("payloads")


@dataclass(frozen=True)
class Request:
    """One request, and the format of the images that it asks for."""

    path: str
    reads: str
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    form: Mapping[str, str] | None = None
    files: tuple[str, ...] = ()
    format: str = "PNG"

    @property
    def text(self) -> str:
        """The request in a line, without the prompt."""
        fields = self.json or self.form or {}
        pairs = [f"{name}={json.dumps(value)}" for name, value in fields.items() if name != "prompt"]
        pairs += [f"{name}=@file" for name in self.files]
        return " ".join([self.method, self.path, *pairs])


@dataclass(frozen=True)
class Conversation:
    """The requests that a program sends for one purpose."""

    client: str
    name: str
    source: str
    requests: tuple[Request, ...]

    def __str__(self) -> str:
        return f"{self.client}: {self.name}"


def read_conversations() -> tuple[Conversation, ...]:
    return tuple(
        conversation for path in sorted(FOLDER.glob("*.json")) for conversation in _conversations(path)
    )


def _conversations(path: Path) -> Iterator[Conversation]:
    content = json.loads(path.read_text(encoding="utf-8"))
    for conversation in content["conversations"]:
        requests = tuple(
            Request(**request | {"files": tuple(request.get("files", ()))})
            for request in conversation["requests"]
        )
        yield Conversation(content["client"], conversation["name"], content["source"], requests)
