"""LiteLLM as a library, and as a proxy behind which the service stands."""

import asyncio
import base64
import os
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import litellm
from litellm.proxy.proxy_cli import run_server
from openai import BadRequestError, OpenAI

from tests.clients.programs.report import action

SDK, PROXY = "LiteLLM, library", "LiteLLM, proxy"
PROMPT = "a red apple"
FEW_STEPS = {"num_inference_steps": 4, "seed": 7}
START_SECONDS = 240.0


def run_library(url: str, folder: Path) -> None:
    service = {"api_base": f"{url}/v1", "api_key": "none"}
    with action(SDK, "generate") as result:
        answer = litellm.image_generation(
            prompt=PROMPT, model="openai/emoji-128", n=2, size="1024x1024", **FEW_STEPS, **service
        )
        result["images"] = _files(answer)
    with action(SDK, "generate asynchronously") as result:
        answer = asyncio.run(
            litellm.aimage_generation(prompt=PROMPT, model="openai/gpt-image-1", **FEW_STEPS, **service)
        )
        result["images"] = _files(answer)
    with action(SDK, "links") as result:
        answer = litellm.image_generation(
            prompt=PROMPT, model="openai/dall-e-3", response_format="url", **FEW_STEPS, **service
        )
        result["urls"] = [item.url for item in answer.data]
    with action(SDK, "edit") as result, (folder / "image.png").open("rb") as file:
        answer = litellm.image_edit(
            image=file, prompt="a green apple", model="openai/emoji-128", extra_body=FEW_STEPS, **service
        )
        result["images"] = _files(answer)
    with action(SDK, "error") as result:
        try:
            litellm.image_generation(
                prompt=PROMPT, model="openai/emoji-128", background="transparent", **service
            )
        except litellm.BadRequestError as error:
            result["error"] = {"status": error.status_code, "message": str(error), "param": "background"}
    with action(SDK, "example") as result:
        os.chdir(folder)
        exec((folder / "litellm.py").read_text(encoding="utf-8"), {})
        result["images"] = [base64.b64encode((folder / "apple.png").read_bytes()).decode()]


def run_through_proxy(port: int, folder: Path) -> None:
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=os.environ["LITELLM_MASTER_KEY"])
    with action(PROXY, "models") as result:
        result["models"] = [model.id for model in client.models.list()]
    with action(PROXY, "generate") as result:
        answer = client.images.generate(
            model="emoji-128",
            prompt=PROMPT,
            n=2,
            size="1024x1024",
            response_format="b64_json",
            extra_body=FEW_STEPS,
        )
        result["images"] = _files(answer)
    with action(PROXY, "links") as result:
        answer = client.images.generate(
            model="dall-e-3", prompt=PROMPT, response_format="url", extra_body=FEW_STEPS
        )
        result["urls"] = [item.url for item in answer.data or ()]
    with action(PROXY, "edit") as result:
        answer = client.images.edit(
            model="emoji-128", image=folder / "image.png", prompt="a green apple", extra_body=FEW_STEPS
        )
        result["images"] = _files(answer)
    with action(PROXY, "error") as result:
        try:
            client.images.generate(model="emoji-128", prompt=PROMPT, background="transparent")
        except BadRequestError as error:
            result["error"] = {"status": error.status_code, "message": str(error), "param": "background"}


def serve_and_use(folder: Path) -> None:
    """Run the proxy's command in this process, which imports nothing twice, and end with it."""
    port = _free_port()

    def use() -> None:
        wait_for(port)
        run_through_proxy(port, folder)
        os._exit(0)

    threading.Thread(target=use, daemon=True).start()
    options = ["--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    run_server.main([*options, "--telemetry", "False"], standalone_mode=False)


def wait_for(port: int) -> None:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=10):
                return
        except OSError:
            time.sleep(0.25)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _files(answer: Any) -> list[str]:
    files = [item.b64_json for item in answer.data]
    assert all(base64.b64decode(file) for file in files)
    return files


if __name__ == "__main__":
    litellm.telemetry = False
    run_library(sys.argv[1], Path(sys.argv[2]))
    serve_and_use(Path(sys.argv[2]))
