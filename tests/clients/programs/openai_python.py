"""OpenAI's library for Python, with its synchronous and its asynchronous client."""

import asyncio
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI, BadRequestError, OpenAI

from tests.clients.programs.report import action

SYNC, ASYNC = "openai-python", "openai-python, asynchronous"
PROMPT, MODEL = "a red apple", "emoji-128"
FEW_STEPS = {"num_inference_steps": 4, "seed": 7}


def run(url: str, folder: Path) -> None:
    client = OpenAI(base_url=f"{url}/v1", api_key="none")
    image, mask = folder / "image.png", folder / "mask.png"
    with action(SYNC, "models") as result:
        result["models"] = [model.id for model in client.models.list()]
    with action(SYNC, "generate") as result:
        answer = client.images.generate(model=MODEL, prompt=PROMPT, n=2, extra_body=FEW_STEPS)
        result["images"] = _files(answer)
    with action(SYNC, "links") as result:
        answer = client.images.generate(
            model=MODEL, prompt=PROMPT, response_format="url", extra_body=FEW_STEPS
        )
        result["urls"] = [item.url for item in answer.data or ()]
    with action(SYNC, "edit") as result:
        answer = client.images.edit(model=MODEL, image=image, prompt="a green apple", extra_body=FEW_STEPS)
        result["images"] = _files(answer)
    with action(SYNC, "edit with a mask") as result:
        answer = client.images.edit(
            model=MODEL, image=[image], mask=mask, prompt="a green apple", extra_body=FEW_STEPS
        )
        result["images"] = _files(answer)
    with action(SYNC, "stream") as result:
        events = client.images.generate(
            model=MODEL, prompt=PROMPT, stream=True, partial_images=2, extra_body=FEW_STEPS
        )
        result["events"] = _describe(events)
    with action(SYNC, "stream of an edit") as result:
        edit_events = client.images.edit(
            model=MODEL, image=image, prompt=PROMPT, stream=True, partial_images=2, extra_body=FEW_STEPS
        )
        result["events"] = _describe(edit_events)
    with action(SYNC, "error") as result:
        try:
            client.images.generate(model=MODEL, prompt=PROMPT, background="transparent")
        except BadRequestError as error:
            result["error"] = {"status": error.status_code, "message": error.message, "param": error.param}


async def run_async(url: str, folder: Path) -> None:
    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
    with action(ASYNC, "generate") as result:
        result["images"] = _files(
            await client.images.generate(model=MODEL, prompt=PROMPT, n=2, extra_body=FEW_STEPS)
        )
    with action(ASYNC, "edit") as result:
        with (folder / "image.png").open("rb") as file:
            answer = await client.images.edit(model=MODEL, image=file, prompt=PROMPT, extra_body=FEW_STEPS)
        result["images"] = _files(answer)
    with action(ASYNC, "stream") as result:
        stream = await client.images.generate(
            model=MODEL, prompt=PROMPT, stream=True, partial_images=2, extra_body=FEW_STEPS
        )
        result["events"] = _describe([event async for event in stream])


def _files(answer: Any) -> list[str]:
    return [item.b64_json for item in answer.data]


def _describe(events: Iterable[Any]) -> list[dict[str, str]]:
    return [{"type": event.type, "image": event.b64_json} for event in events]


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]))
    asyncio.run(run_async(sys.argv[1], Path(sys.argv[2])))
