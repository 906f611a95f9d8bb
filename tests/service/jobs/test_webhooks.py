"""Webhooks: what receivers get, that they get it once it is due, and where nothing is sent."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from httpx2 import URL
from openai import InvalidWebhookSignatureError, OpenAI
from sqlalchemy import select

from safelight.service.database.tables import webhook_messages
from safelight.service.errors import StageLost
from safelight.service.jobs.job import JobError, JobResult
from safelight.service.jobs.outbox import PAUSES, SENDING_SECONDS, take_messages
from safelight.service.jobs.receivers import BadReceiver, find_address, is_public, parse_receiver
from safelight.service.jobs.webhooks import WebhookSender
from tests.service.jobs.opened import Jobs
from tests.service.jobs.receiver import Receiver, receiving
from tests.service.jobs.submissions import RESULT, make_submission

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SQLITE = pytest.mark.parametrize("location", ["sqlite"], indirect=True)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


async def end_a_job(jobs: Jobs, url: str, outcome: JobResult | JobError = RESULT) -> str:
    jobs.clock.now = max(jobs.clock.now % 1e9, time.time())  # receivers compare the time with their own
    await jobs.store.submit(make_submission(webhook=url), "gateway")
    job = await jobs.leases.claim("gateway")
    assert job is not None and await jobs.leases.end(job, outcome)
    return job.id


async def read_row(jobs: Jobs) -> Any:
    async with jobs.table.reading() as connection:
        [row] = (await connection.execute(select(webhook_messages))).all()
        return row


def make_sender(jobs: Jobs, *origins: str) -> WebhookSender:
    return WebhookSender(jobs.table, origins, SECRET)


@pytest.mark.parametrize(("outcome", "state"), [(RESULT, "done"), (JobError.of(StageLost()), "failed")])
async def test_a_receiver_is_told_the_end_once(
    jobs: Jobs, receiver: Receiver, outcome: JobResult | JobError, state: str
) -> None:
    job_id = await end_a_job(jobs, f"{receiver.origin}/hook?for=me", outcome)
    sender = make_sender(jobs, receiver.origin)
    assert [await sender.send_due() for _ in range(2)] == [1, 0]
    [(path, headers, body)] = receiver.requests
    assert (path, headers["content-type"]) == ("/hook?for=me", "application/json")
    with OpenAI(api_key="none", webhook_secret=SECRET) as client:
        event: Any = client.webhooks.unwrap(body, headers)
        assert (event.type, event.data.id, event.id) == (f"image_job.{state}", job_id, headers["webhook-id"])
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.unwrap(body.replace(b"job", b"jab"), headers)
    assert (await read_row(jobs)).ended == jobs.clock.now


@SQLITE
async def test_a_cancelled_and_an_expired_job_are_told_too(jobs: Jobs, receiver: Receiver) -> None:
    for _ in range(2):
        job, _ = await jobs.store.submit(make_submission(webhook=receiver.origin), "gateway")
    await jobs.store.cancel(job.id, "alice")
    jobs.clock.advance(1000)
    await jobs.leases.sweep()
    await jobs.leases.sweep()
    await make_sender(jobs, receiver.origin).send_due()
    types = [json.loads(body)["type"] for _, _, body in receiver.requests]
    assert sorted(types) == ["image_job.cancelled", "image_job.expired"]


@SQLITE
async def test_a_message_is_sent_again_later_and_later_and_then_given_up(
    jobs: Jobs, receiver: Receiver
) -> None:
    await end_a_job(jobs, receiver.origin)
    receiver.statuses = [500]
    sender = make_sender(jobs, receiver.origin)
    for attempt, pause in enumerate(PAUSES, 1):
        assert await sender.send_due() == 1
        row = await read_row(jobs)
        assert (row.attempts, row.ended, row.error) == (attempt, None, "it answered with status 500")
        wait = row.due - jobs.clock.now
        assert 0.8 * pause <= wait <= 1.2 * pause
        jobs.clock.advance(wait - 0.01)
        assert await sender.send_due() == 0
        jobs.clock.advance(0.02)
    assert await sender.send_due() == 1
    assert (await read_row(jobs)).ended == jobs.clock.now
    jobs.clock.advance(10 * PAUSES[-1])
    assert await sender.send_due() == 0
    ids = {headers["webhook-id"] for _, headers, _ in receiver.requests}
    times = [headers["webhook-timestamp"] for _, headers, _ in receiver.requests]
    assert (len(receiver.requests), len(ids)) == (len(PAUSES) + 1, 1)
    assert times == sorted(times) and len(set(times)) == len(times)


@SQLITE
@pytest.mark.parametrize(("status", "is_final"), [(410, True), (302, False), (404, False)])
async def test_what_an_answer_means(jobs: Jobs, receiver: Receiver, status: int, is_final: bool) -> None:
    receiver.statuses, receiver.headers = [status], {"location": f"{receiver.origin}/elsewhere"}
    await end_a_job(jobs, f"{receiver.origin}/hook")
    await make_sender(jobs, receiver.origin).send_due()
    row = await read_row(jobs)
    assert (row.error, row.ended is not None) == (f"it answered with status {status}", is_final)
    assert [path for path, _, _ in receiver.requests] == ["/hook"], "no redirect is followed"


async def test_no_two_senders_send_the_same_message(jobs: Jobs) -> None:
    for _ in range(5):
        await end_a_job(jobs, "https://hooks.test/")

    async def take() -> list[str]:
        async with jobs.table.writing() as connection:
            return [message.id for message in await take_messages(connection, jobs.clock.now)]

    taken = [message_id for ids in await asyncio.gather(*(take() for _ in range(3))) for message_id in ids]
    assert len(taken) == len(set(taken)) == 5
    assert await take() == []
    jobs.clock.advance(SENDING_SECONDS)  # the sender was lost
    assert sorted(await take()) == sorted(taken)


@SQLITE
async def test_a_receiver_that_is_not_allowed_any_more_gets_nothing(jobs: Jobs, receiver: Receiver) -> None:
    await end_a_job(jobs, receiver.origin)
    await make_sender(jobs, "https://other.test").send_due()
    assert receiver.requests == []
    assert "not one of the origins" in (await read_row(jobs)).error


@SQLITE
@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["::ffff:127.0.0.1"], []]
)
async def test_a_name_that_leads_into_a_private_network_gets_nothing(
    jobs: Jobs, receiver: Receiver, addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_names_with(addresses, monkeypatch)
    origin = f"http://hooks.test:{receiver.port}"
    await end_a_job(jobs, origin)
    await make_sender(jobs, origin).send_due()
    assert receiver.requests == []
    assert "the receiver hooks.test has" in (await read_row(jobs)).error


def answer_names_with(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the event loop look names up so; returns the names that it was asked for."""
    asked: list[str] = []

    async def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return asked


@SQLITE
async def test_the_connection_goes_to_the_address_that_was_checked(
    jobs: Jobs, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answer_names_with(["127.0.0.1"], monkeypatch)
    monkeypatch.setattr("safelight.service.jobs.receivers.is_public", lambda address: True)
    origin = f"http://hooks.test:{receiver.port}"
    await end_a_job(jobs, f"{origin}/hook")
    await make_sender(jobs, origin).send_due()
    [(path, headers, _)] = receiver.requests
    assert (path, headers["host"]) == ("/hook", f"hooks.test:{receiver.port}")
    assert asked == ["hooks.test"], "looked up once, so that no second answer is another one"


async def test_an_address_that_is_allowed_by_itself_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer_names_with([], monkeypatch)
    assert await find_address(URL("http://127.0.0.1:9000/")) == "127.0.0.1"
    assert await find_address(URL("http://[::1]:9000/")) == "::1"
    assert asked == []


ALLOWED = ("https://hooks.test", "http://10.0.0.1:9000", "http://[::1]")
BAD_RECEIVERS = (
    "hooks.test", "ftp://hooks.test/", "https://", "http://hooks.test/", "https://hooks.test:8443/",
    "https://evil.hooks.test/", "https://hooks.test.evil/", "https://hooks.test@evil.test/",
    "https://user:password@hooks.test/", "http://10.0.0.1/", "http://127.0.0.1:9000/",
    "http://2130706433:9000/",
    "https://hooks.test\\@evil.test/", "//hooks.test/", "file:///etc/passwd",
    f"https://hooks.test/{'a' * 2000}",
)  # fmt: skip


@pytest.mark.parametrize("text", BAD_RECEIVERS, ids=lambda text: text[:40])
def test_a_receiver_must_be_allowed(text: str) -> None:
    with pytest.raises(BadReceiver):
        parse_receiver(text, ALLOWED)


@pytest.mark.parametrize(
    "text", ["https://hooks.test/a?b=c", "https://HOOKS.test:443", "http://10.0.0.1:9000/", "http://[::1]/x"]
)
def test_a_receiver_that_is_allowed(text: str) -> None:
    assert parse_receiver(text, ALLOWED).host in ("hooks.test", "10.0.0.1", "::1")


PRIVATE = (
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1",
    "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1",
    "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::", "name",
)  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)
