"""Readers of the files in `deploy`."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SERVE_CONFIGS = sorted((DEPLOY / "serve").glob("*.yaml"))
DOCKERFILES = sorted((DEPLOY / "docker").glob("Dockerfile*"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile, on one line, without comments."""

    name: str
    value: str


def instructions(dockerfile: Path) -> list[Instruction]:
    lines = [
        line
        for line in dockerfile.read_text(encoding="utf-8").splitlines()
        if not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def argument(dockerfile: Path, name: str) -> str:
    """The default of an ARG."""
    (default,) = (
        instruction.value
        for instruction in instructions(dockerfile)
        if instruction.name == "ARG" and instruction.value.startswith(f"{name}=")
    )
    return default.removeprefix(f"{name}=").strip('"')


def pins(name: str) -> dict[str, str]:
    """The pinned versions of `requirements/NAME.txt` on the Python that runs the tests, by package."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", "")
    requirements = [Requirement(line.split(" --hash")[0]) for line in text.splitlines() if line.strip()]
    return {
        requirement.name: str(requirement.specifier).removeprefix("==")
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate()
    }


def documents(file: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(file.read_text(encoding="utf-8")) if document]


def settings_of(config: Path) -> dict[str, Any]:
    """The `args` of a Serve config."""
    (application,) = yaml.safe_load(config.read_text(encoding="utf-8"))["applications"]
    settings: dict[str, Any] = application["args"]
    return settings
