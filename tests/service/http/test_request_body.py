"""A request's body: slow, cut off or too large. No test waits: the clock is virtual."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest
from starlette.requests import Request

from safelight.service.errors import BodyTooLarge, BodyTooSlow, ClientGone
from safelight.service.http.gateway import build_gateway
from safelight.service.http.request_body import read_json_body
from safelight.service.settings import Settings
from safelight.service.usage.records import RequestOutcome, UsageRecord
from safelight.service.usage.reporter import Outbox
from tests.fakes import MODEL, FakeBackend
from tests.service.asgi import AsgiClient
from tests.virtual_time import run_in_virtual_time

BODY = json.dumps({"prompt": "p"}).encode()
LIMIT = 1000


def pause_for(seconds: float) -> Callable[[], Awaitable[None]]:
    return lambda: asyncio.sleep(seconds)


def read(client: AsgiClient, seconds: float) -> tuple[bytes, float]:
    """The body as `read_json_body` reads it within `seconds`, and the time at which it returned."""

    async def read_and_time() -> tuple[bytes, float]:
        body = await read_json_body(Request(client.scope, client.receive), LIMIT, seconds)
        return body, asyncio.get_running_loop().time()

    return run_in_virtual_time(read_and_time())


def test_a_body_in_parts_is_joined() -> None:
    body, time = read(AsgiClient(b'{"a"', b": 1", b"}", pause=pause_for(1.0)), seconds=20.0)
    assert body == b'{"a": 1}' and time == pytest.approx(3.0)


def test_a_body_just_in_time_is_read_and_one_a_moment_later_is_not() -> None:
    assert read(AsgiClient(BODY, pause=pause_for(19.9)), seconds=20.0)[0] == BODY
    with pytest.raises(BodyTooSlow, match=r"^The body did not arrive within 20 seconds\.$"):
        read(AsgiClient(BODY, pause=pause_for(20.1)), seconds=20.0)


def test_the_time_is_that_of_the_whole_body() -> None:
    """A client that sends a byte from time to time does not keep its connection."""
    trickle = [b" "] * (LIMIT - 1)
    with pytest.raises(BodyTooSlow):
        read(AsgiClient(*trickle, pause=pause_for(1.0)), seconds=20.0)


def test_a_client_that_sends_nothing_is_408_after_body_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[UsageRecord] = []
    monkeypatch.setattr(Outbox, "put", lambda self, record: records.append(record))
    client, backend = AsgiClient(b"{", is_whole=False), FakeBackend()

    async def answer() -> float:
        await client.call(build_gateway(backend, MODEL, Settings(body_seconds=7.0)))
        return asyncio.get_running_loop().time()

    assert run_in_virtual_time(answer()) == pytest.approx(7.0)
    assert (client.status, client.json["error"]["code"]) == (408, "request_timeout")
    assert client.json["error"]["message"] == "The body did not arrive within 7 seconds."
    assert "retry-after" not in client.headers
    assert [(record.outcome, record.code) for record in records] == [
        (RequestOutcome.REFUSED, "request_timeout")
    ]
    assert backend.calls == []


def test_the_body_has_its_own_time_and_not_that_of_the_images() -> None:
    client = AsgiClient(BODY, pause=pause_for(5.0))
    run_in_virtual_time(client.call(build_gateway(FakeBackend(), MODEL, Settings(deadline_seconds=1.0))))
    assert client.status == 200


def test_the_limit_is_the_last_byte_allowed() -> None:
    assert len(read(AsgiClient(b" " * LIMIT), seconds=1.0)[0]) == LIMIT
    with pytest.raises(BodyTooLarge, match=f"larger than {LIMIT} bytes"):
        read(AsgiClient(b" " * (LIMIT - 1), b"  "), seconds=1.0)


def test_a_body_too_large_is_refused_before_the_rest_of_it_arrives() -> None:
    with pytest.raises(BodyTooLarge):
        read(AsgiClient(b" " * (LIMIT + 1), is_whole=False), seconds=1.0)


def test_a_body_that_is_declared_too_large_is_refused_before_any_of_it_arrives() -> None:
    silent, allowed = AsgiClient(b"{}"), AsgiClient(b"{}")
    silent.scope["headers"] += [(b"content-length", str(LIMIT + 1).encode())]
    with pytest.raises(BodyTooLarge, match=f"larger than {LIMIT} bytes"):
        read(silent, seconds=1.0)
    allowed.scope["headers"] += [(b"content-length", str(LIMIT).encode())]
    assert read(allowed, seconds=1.0)[0] == b"{}"


def test_a_client_that_goes_away_within_its_body_is_gone() -> None:
    async def go_away() -> None:
        client = AsgiClient(b"{", is_whole=False)
        client.disconnected.set()
        await read_json_body(Request(client.scope, client.receive), LIMIT, 20.0)

    with pytest.raises(ClientGone):
        run_in_virtual_time(go_away())
