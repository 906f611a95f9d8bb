"""Idempotency-Key: a request that is sent again has the answer of the first, and is drawn and billed once."""

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from httpx2 import Response

from safelight.service.errors import BrokenImage, QueueFull, StageFailed
from tests.service.asgi import AsgiClient
from tests.service.conftest import ROUTE
from tests.service.http.jobs.service import ASYNC, BODY, JOBS, Service, make_settings, serving

KEY = {"idempotency-key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}


def same(first: Response, second: Response) -> bool:
    return (first.status_code, first.content) == (second.status_code, second.content)


def test_the_same_request_has_the_same_answer(service: Service) -> None:
    plain = service.draw(n=2)
    first, second = service.draw(KEY, n=2), service.draw(KEY, n=2)
    assert first.status_code == 200 and same(first, second)
    assert service.num_drawn == 4, "the second was not drawn"
    assert first.json()["data"] == plain.json()["data"]
    assert first.json().keys() == plain.json().keys()
    service.until(lambda: len(service.records) == 2)
    assert [record.num_images for record in service.records] == [2, 2]


def test_a_random_seed_is_kept(service: Service) -> None:
    answers = [service.client.post(ROUTE, json={"prompt": "p"}, headers=KEY) for _ in range(2)]
    assert same(*answers)


def test_the_key_may_be_quoted_as_the_draft_of_the_ietf_writes_it(service: Service) -> None:
    quoted = {"idempotency-key": f'"{KEY["idempotency-key"]}"'}
    assert same(service.draw(KEY), service.draw(quoted))


def test_equal_requests_may_be_written_differently(service: Service) -> None:
    first = service.client.post(
        ROUTE, content=b'{"prompt":"p","seed":7}', headers=KEY | {"content-type": "application/json"}
    )
    second = service.client.post(
        ROUTE, content=b'{"seed": 7,\n "prompt": "p"}', headers=KEY | {"content-type": "application/json"}
    )
    assert same(first, second) and service.num_drawn == 1


@pytest.mark.parametrize("fields", [{"prompt": "q"}, {"seed": 8}, {"n": 2}, {"unknown": 1}], ids=str)
def test_another_request_with_the_key_is_refused(fields: dict[str, Any], service: Service) -> None:
    first = service.draw(KEY)
    response = service.draw(KEY, **fields)
    assert (response.status_code, response.json()["error"]["code"]) == (409, "idempotency_key_reused")
    assert response.headers["x-should-retry"] == "false"
    assert same(service.draw(KEY), first)


def test_the_key_is_refused_on_another_route(service: Service) -> None:
    service.draw(KEY)
    files = {"image": ("a.png", b"image", "image/png")}
    response = service.client.post("/v1/images/edits", data=BODY, files=files, headers=KEY)
    assert response.status_code == 409


def test_a_form_is_the_same_by_its_files(service: Service) -> None:
    def edit(image: bytes) -> Response:
        files = {"image": ("a.png", image, "image/png")}
        return service.client.post("/v1/images/edits", data=BODY, files=files, headers=KEY)

    first = edit(b"image")
    assert first.status_code == 200, first.text
    assert same(first, edit(b"image"))  # although the boundary is another one
    assert edit(b"other").status_code == 409
    assert len(service.backend.uploads) == 1


def test_requests_at_the_same_time_wait_for_one_drawing(service: Service) -> None:
    service.close_gate()
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(service.draw, KEY) for _ in range(4)]
        service.until(lambda: len(service.backend.calls) >= 2)
        service.open_gate()
        responses = [answer.result() for answer in answers]
    assert all(same(response, responses[0]) for response in responses)
    assert service.num_drawn == 1


@pytest.mark.parametrize("error", [BrokenImage("no"), StageFailed("no"), QueueFull()], ids=repr)
def test_a_failure_is_not_pinned(error: Exception, service: Service) -> None:
    service.backend.errors = [error]
    failed = service.draw(KEY)
    assert failed.status_code in (429, 503)
    assert failed.json()["error"]["message"] == str(error)
    again = service.draw(KEY)
    assert again.status_code == 200
    assert same(service.draw(KEY), again)


def test_a_fault_of_the_request_is_not_pinned(service: Service) -> None:
    assert service.draw(KEY, prompt="").status_code == 400
    assert service.draw(KEY).status_code == 200


def test_links_are_answered_again(service: Service) -> None:
    first, second = (service.draw(KEY, response_format="url") for _ in range(2))
    assert same(first, second)
    link = urlsplit(first.json()["data"][0]["url"])
    assert service.client.get(f"{link.path}?{link.query}").status_code == 200
    assert "b64_json" not in first.json()["data"][0]


def test_adjustments_are_told_again(service: Service) -> None:
    answers = [service.draw(KEY, size="8x9") for _ in range(2)]
    assert same(*answers)
    assert [answer.headers["x-safelight-adjusted"] for answer in answers] == ["size", "size"]


def test_a_job_may_have_a_key(service: Service) -> None:
    first, second = (service.client.post(ROUTE, json=BODY, headers=ASYNC | KEY) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    service.wait(f"{JOBS}/{first.json()['id']}")
    waited = service.draw(KEY)  # who would rather wait for it
    assert waited.status_code == 200 and service.num_drawn == 1
    assert base64.b64decode(waited.json()["data"][0]["b64_json"])


@pytest.mark.parametrize("key", ["", " ", "é", "x" * 256, '""'])
def test_a_key_that_is_none(key: str, service: Service) -> None:
    response = service.client.post(ROUTE, json=BODY, headers=[(b"idempotency-key", key.encode("latin-1"))])
    assert (response.status_code, response.json()["error"]["param"]) == (400, "Idempotency-Key")


def test_a_streamed_answer_has_no_key(service: Service) -> None:
    response = service.draw(KEY, stream=True)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "stream")


async def test_a_client_that_went_away_asks_again(tmp_path: Path) -> None:
    with serving(make_settings(tmp_path)) as service:
        service.close_gate()
        gone = AsgiClient.of(BODY)
        gone.scope["headers"].append((b"idempotency-key", KEY["idempotency-key"].encode()))
        call = service.client.portal.start_task_soon(gone.call, service.app)  # type: ignore[union-attr]
        service.until(lambda: len(service.backend.calls) == 2)  # with the warm-up
        service.client.portal.call(_disconnect, gone)  # type: ignore[union-attr]
        call.result(30)
        service.open_gate()
        assert service.draw(KEY).status_code == 200
        assert (service.num_drawn, service.backend.num_cancelled) == (1, 0)


async def _disconnect(client: AsgiClient) -> None:
    client.disconnected.set()
