"""Images through the official `openai` client, with its own two retries, compared with undisturbed ones."""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

import openai

TIMEOUT_SECONDS = 600.0  # the client's own default


@dataclass(frozen=True)
class Picture:
    """What is asked for; the same picture always has the same bytes."""

    prompt: str
    seed: int
    num_steps: int
    solver: str


@dataclass(frozen=True)
class Sent:
    """One request and its answer."""

    request_id: str
    sent_at: float  # by time.monotonic
    ended_at: float
    digest: str  # of the image; empty without one
    error: str  # empty with an image
    retries: int  # by the client


def mix(number: int) -> list[Picture]:
    """As many different pictures."""
    prompts = ("a red apple", "rocket", "cat face", "three umbrellas")
    solvers = ("dpmpp_2m", "heun", "ddim")
    return [
        Picture(prompts[k % 4], k, (8, 20, 30)[k % 3], solvers[(k // 2) % len(solvers)])
        for k in range(number)
    ]


def make_client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=TIMEOUT_SECONDS)


async def draw(client: openai.AsyncOpenAI, picture: Picture) -> Sent:
    """Draw a picture through `client`; never raises an error of the service."""
    request_id, sent_at = f"chaos-{secrets.token_hex(8)}", time.monotonic()
    extra = {"seed": picture.seed, "num_inference_steps": picture.num_steps, "solver": picture.solver}
    try:
        answer = await client.images.with_raw_response.generate(
            prompt=picture.prompt, extra_body=extra, extra_headers={"x-request-id": request_id}
        )
        data = answer.parse().data or []
        digest = hashlib.sha256((data[0].b64_json or "").encode()).hexdigest()
        return Sent(request_id, sent_at, time.monotonic(), digest, "", answer.retries_taken)
    except openai.OpenAIError as error:
        return Sent(request_id, sent_at, time.monotonic(), "", f"{type(error).__name__}: {error}", 0)


async def draw_one_by_one(client: openai.AsyncOpenAI, pictures: Sequence[Picture]) -> list[Sent]:
    return [await draw(client, picture) for picture in pictures]


async def draw_at_once(client: openai.AsyncOpenAI, pictures: Sequence[Picture]) -> list[Sent]:
    return await asyncio.gather(*(draw(client, picture) for picture in pictures))


async def draw_at_rate(
    client: openai.AsyncOpenAI, pictures: Sequence[Picture], rate: float, number: int, stop: asyncio.Event
) -> list[tuple[Picture, Sent]]:
    """Draw the pictures in turn, `rate` a second, whether or not earlier ones are done.

    Returns when at least `number` were sent, `stop` is set, and all are answered.
    """
    tasks: list[tuple[Picture, asyncio.Task[Sent]]] = []
    started = time.monotonic()
    while len(tasks) < number or not stop.is_set():
        picture = pictures[len(tasks) % len(pictures)]
        tasks.append((picture, asyncio.ensure_future(draw(client, picture))))
        await asyncio.sleep(max(0.0, started + len(tasks) / rate - time.monotonic()))
    return [(picture, await task) for picture, task in tasks]
