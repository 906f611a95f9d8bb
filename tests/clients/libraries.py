"""Clients that are installed: the programs that use them, and what each action must return."""

import base64
import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.clients.environment import FOLDER, PYTHON, ROOT
from tests.clients.images import check_images, mask, upload
from tests.clients.readers import MODEL

SECONDS = 300.0
SEED = 7  # of all requests of clients that can send one: it is an option that OpenAI does not have
PAGE = ROOT / "docs/clients.md"
Fetch = Callable[[str], bytes]
Result = Mapping[str, Any]
Check = Callable[[Result, Fetch], None]


@dataclass(frozen=True)
class Action:
    """Something that a client is asked to do; `check` raises an error if its result is wrong."""

    client: str
    name: str
    reads: str
    check: Check

    def __str__(self) -> str:
        return f"{self.client}: {self.name}"


@dataclass(frozen=True)
class Program:
    """A program that uses clients, and the actions whose results it prints.

    Attributes:
        command: What runs it; the service's URL and a folder with the files to edit are appended.
        actions: In the order in which they are done.
        script: Is given on standard input, if any.
        is_installed: Whether it needs the environment of `make clients`.
        examples: Files that it gets with the examples of docs/clients.md in which these words are.
    """

    command: tuple[str, ...]
    actions: tuple[Action, ...]
    script: Path | None = None
    is_installed: bool = True
    examples: Mapping[str, str] = field(default_factory=dict)

    def run(self, url: str, folder: Path) -> dict[tuple[str, str], Result]:
        """What it prints for each client and action. Raises `AssertionError` if it does not end well."""
        (folder / "image.png").write_bytes(upload())
        (folder / "mask.png").write_bytes(mask())
        for name, words in self.examples.items():
            # Node.js finds packages from the folder of a module.
            example = (FOLDER if self.script else folder) / name
            example.write_text(example_with(words).replace("http://localhost:8000", url), encoding="utf-8")
        done = subprocess.run(
            [*self.command, url, str(folder)],
            cwd=FOLDER if self.script else ROOT,
            input=self.script.read_text(encoding="utf-8") if self.script else "",
            env=_environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"client"')]
        return {(result["client"], result["action"]): result for result in results}


def example_with(words: str) -> str:
    """The only block of code in docs/clients.md that holds these words."""
    blocks = re.findall(r"^```\w+\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if words in block)
    return str(block)


def _environment() -> dict[str, str]:
    """The environment of a client: nothing is fetched, counted or sent anywhere but to the service."""
    offline = {
        "DO_NOT_TRACK": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MASTER_KEY": f"sk-{secrets.token_hex(32)}",  # its proxy does not start without
        "NO_PROXY": "*",
    }
    keys = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID")
    return {name: value for name, value in os.environ.items() if name not in keys} | offline


def _images(count: int) -> Check:
    def check(result: Result, fetch: Fetch) -> None:
        check_images([base64.b64decode(file) for file in result["images"]], count, seed=SEED)

    return check


def _links(count: int, seed: int | None = SEED) -> Check:
    return lambda result, fetch: check_images([fetch(url) for url in result["urls"]], count, seed=seed)


def _check_models(result: Result, fetch: Fetch) -> None:
    assert MODEL in result["models"]


def _check_tools(result: Result, fetch: Fetch) -> None:
    assert result["tools"] == ["generate_image"]


def _events(kind: str) -> Check:
    def check(result: Result, fetch: Fetch) -> None:
        *previews, completed = [event["type"] for event in result["events"]]
        assert previews == [f"{kind}.partial_image"] * len(previews) and len(previews) <= 2
        assert completed == f"{kind}.completed"
        files = [base64.b64decode(event["image"]) for event in result["events"]]
        check_images(files, len(files))
        check_images(files[-1:], seed=SEED)

    return check


def _check_error(result: Result, fetch: Fetch) -> None:
    """A refusal reaches the user as such, with the sentence that names the field."""
    error = result["error"]
    assert error.get("status", 400) == 400 and error.get("is_error", True)
    assert error["param"] in error["message"], error


def _actions(client: str, **checks: tuple[str, Check]) -> tuple[Action, ...]:
    """The actions of a client, named by the keywords with spaces for underscores."""
    return tuple(
        Action(client, name.replace("_", " "), reads, check) for name, (reads, check) in checks.items()
    )


MODELS = ("the list of models", _check_models)
TWO_IMAGES = ("b64_json of two images", _images(2))
ONE_IMAGE = ("b64_json", _images(1))
LINK = ("url, fetched", _links(1))
STREAM = ("previews and the image", _events("image_generation"))
EDIT_STREAM = ("previews and the image", _events("image_edit"))
EXAMPLE = ("the file of the example in docs/clients.md", _images(1))
ERROR = ("status 400, the sentence", _check_error)

OPENAI_PYTHON = Program(
    (sys.executable, "-m", "tests.clients.programs.openai_python"),
    (
        *_actions(
            "openai-python",
            models=MODELS,
            generate=TWO_IMAGES,
            links=LINK,
            edit=ONE_IMAGE,
            edit_with_a_mask=ONE_IMAGE,
            stream=STREAM,
            stream_of_an_edit=EDIT_STREAM,
            error=ERROR,
        ),
        *_actions("openai-python, asynchronous", generate=TWO_IMAGES, edit=ONE_IMAGE, stream=STREAM),
    ),
    is_installed=False,
)
MCP = Program(
    (sys.executable, "-m", "tests.clients.programs.mcp_tool"),
    _actions(
        "mcp",
        tools=("the list of tools", _check_tools),
        generate=("the image as content", _images(1)),
        error=("isError, the sentence", _check_error),
    ),
    is_installed=False,
)
NODE = Program(
    ("node", "--input-type=module", "-"),
    (
        *_actions(
            "openai-node",
            models=MODELS,
            generate=TWO_IMAGES,
            links=LINK,
            edit=ONE_IMAGE,
            edit_with_a_mask=ONE_IMAGE,
            stream=STREAM,
            error=ERROR,
            example=EXAMPLE,
        ),
        *_actions("Vercel AI SDK", generate=TWO_IMAGES, edit=ONE_IMAGE, error=ERROR, example=EXAMPLE),
    ),
    script=ROOT / "tests/clients/node/clients.mjs",
    examples={"openai.mjs": "new OpenAI(", "vercel.mjs": "createOpenAICompatible("},
)
LITELLM = Program(
    (str(PYTHON), "-m", "tests.clients.programs.litellm_gateway"),
    (
        *_actions(
            "LiteLLM, library",
            generate=TWO_IMAGES,
            generate_asynchronously=ONE_IMAGE,
            links=LINK,
            edit=ONE_IMAGE,
            error=ERROR,
            example=EXAMPLE,
        ),
        *_actions(
            "LiteLLM, proxy", models=MODELS, generate=TWO_IMAGES, links=LINK, edit=ONE_IMAGE, error=ERROR
        ),
    ),
    examples={"litellm.py": "litellm.image_generation(", "litellm.yaml": "model_list:"},
)
LANGCHAIN = Program(
    (str(PYTHON), "-m", "tests.clients.programs.langchain_tools"),
    _actions(
        "LangChain",
        DallEAPIWrapper=("url, fetched", _links(1, seed=None)),
        OpenAIDALLEImageGenerationTool=("two urls, fetched", _links(2, seed=None)),
        example=("url, fetched", _links(1, seed=None)),
    ),
    examples={"langchain.py": "DallEAPIWrapper("},
)
PROGRAMS = (OPENAI_PYTHON, MCP, NODE, LITELLM, LANGCHAIN)
