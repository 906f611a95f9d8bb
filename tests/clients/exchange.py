"""Sends the conversations over HTTP and reads the answers as the programs do."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx2

from tests.clients.images import check_images, upload
from tests.clients.payloads import Conversation, Request
from tests.clients.readers import OF_IMAGES, READERS, Answer

SECONDS = 300.0


@dataclass(frozen=True)
class Outcome:
    """How a conversation went: the statuses of its answers, and what of them could not be read."""

    conversation: Conversation
    statuses: tuple[int, ...]
    fault: str = ""


def hold_all(url: str, conversations: Sequence[Conversation]) -> list[Outcome]:
    """The outcomes of all conversations, held at the same time with the service at `url`."""
    with (
        httpx2.Client(base_url=url, timeout=SECONDS) as client,
        ThreadPoolExecutor(len(conversations)) as pool,
    ):
        return list(pool.map(lambda conversation: _hold(client, conversation), conversations))


def _hold(client: httpx2.Client, conversation: Conversation) -> Outcome:
    statuses: list[int] = []
    try:
        for request in conversation.requests:
            answer = _send(client, request)
            statuses.append(answer.status)
            _read(answer, request)
    except Exception as error:  # of any kind: what a program trips over is not ours to choose
        return Outcome(conversation, tuple(statuses), f"{type(error).__name__}: {error}")
    return Outcome(conversation, tuple(statuses))


def _send(client: httpx2.Client, request: Request) -> Answer:
    response = client.request(
        request.method,
        request.path,
        headers=dict(request.headers),
        json=request.json,
        data=dict(request.form) if request.form else None,
        files=[(name, ("image.png", upload(), "image/png")) for name in request.files] or None,
    )
    content_type = response.headers.get("content-type", "")
    return Answer(response.status_code, content_type, response.content, lambda url: fetch_image(client, url))


def fetch_image(client: httpx2.Client, url: str) -> bytes:
    """The file behind a link. Raises `AssertionError` unless it is an image."""
    assert url.startswith(("http://", "https://")), url
    response = client.get(url)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("image/")
    return response.content


def _read(answer: Answer, request: Request) -> None:
    """Raise an error if the program could not read the answer."""
    assert answer.status == 200, answer.body.decode(errors="replace")[:300]
    files = READERS[request.reads](answer)
    if request.reads in OF_IMAGES:
        num_previews = (request.json or {}).get("partial_images", 0)
        assert len(files) <= 1 + num_previews, f"{len(files)} images"
        check_images(files, max(len(files), 1), request.format)
