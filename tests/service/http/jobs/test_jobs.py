"""Jobs over HTTP: submitted, shown, followed, listed, cancelled, and drawn again after a restart."""

import base64
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from safelight.service.errors import BrokenImage, StageLost
from safelight.service.http.jobs import events
from safelight.service.http.jobs.schemas import JobObject
from safelight.service.jobs import queue, runner
from safelight.service.messages import ImageFormat, Upload
from tests.fakes import MODEL, fake_image, make_params
from tests.service.conftest import ROUTE
from tests.service.http.jobs.service import ASYNC, BODY, JOBS, Service, make_settings, serving
from tests.service.jobs.receiver import receiving
from tests.service.jobs.test_webhooks import SECRET

EDITS = "/v1/images/edits"


def test_a_request_becomes_a_job(service: Service) -> None:
    service.close_gate()
    response = service.client.post(ROUTE, json=BODY | {"n": 2}, headers=ASYNC | {"x-request-id": "mine"})
    assert (response.status_code, response.headers["preference-applied"]) == (202, "respond-async")
    job = response.json()
    assert response.headers["location"] == f"http://testserver{JOBS}/{job['id']}"
    assert (job["state"], job["position"], job["n"], job["steps"]) == ("queued", 0, 2, 8)
    assert (job["kind"], job["model"], job["request_id"]) == ("generation", MODEL.id, "mine")
    assert (job["result"], job["error"], job["steps_done"], job["attempts"]) == (None, None, 0, 0)
    path = f"{JOBS}/{job['id']}"
    running = service.wait(path, "running")
    assert (running["position"], running["attempts"], running["ended_at"]) == (None, 1, None)
    service.open_gate()
    done = service.wait(path)
    assert (done["steps_done"], done["error"], done["result"]["size"]) == (8, None, "8x8")
    assert done["ended_at"] >= done["started_at"] >= done["created_at"]


@pytest.mark.parametrize(
    "preference", ["respond-async", "RESPOND-ASYNC", "wait=5, respond-async", 'respond-async; foo="bar"']
)
def test_the_preference_is_read_as_rfc_7240_writes_it(preference: str, service: Service) -> None:
    assert service.client.post(ROUTE, json=BODY, headers={"prefer": preference}).status_code == 202


@pytest.mark.parametrize("preference", ["", "wait=5", "respond-async-or-not", "return=minimal"])
def test_other_preferences_change_nothing(preference: str, service: Service) -> None:
    response = service.client.post(ROUTE, json=BODY, headers={"prefer": preference})
    assert response.status_code == 200 and "preference-applied" not in response.headers


def test_the_images_are_those_of_a_plain_call(service: Service) -> None:
    fields: dict[str, Any] = {"n": 2, "output_format": "webp", "steps": 6}
    plain = service.draw(**fields).json()
    done = service.wait(service.submit(**fields))
    files = [base64.b64decode(image["b64_json"]) for image in plain["data"]]
    links = [urlsplit(image["url"]) for image in done["result"]["data"]]
    linked = [service.client.get(f"{link.path}?{link.query}") for link in links]
    contents = [service.client.get(f"{JOBS}/{done['id']}/content?index={index}") for index in (0, 1)]
    for answers in (linked, contents):
        assert [answer.content for answer in answers] == files
        assert {answer.headers["content-type"] for answer in answers} == {"image/webp"}
    usage, plain_usage = done["result"]["usage"], plain["usage"]
    for cost in (usage["safelight"], plain_usage["safelight"]):
        for name in ("seconds", "store_seconds", "stored_bytes"):
            del cost[name]
    assert usage == plain_usage and usage["safelight"]["adjusted"]


def test_the_seed_is_chosen_when_the_job_is_submitted(service: Service) -> None:
    service.backend.image_errors = [StageLost() for _ in range(4)]  # also of the dispatcher's own retries
    response = service.client.post(ROUTE, json={"prompt": "p"}, headers=ASYNC)
    path = f"{JOBS}/{response.json()['id']}"
    assert service.wait(path)["attempts"] == 2
    seeds = [params.seed for params, _, _ in service.backend.calls if params.prompt == "p"]
    assert len(seeds) == 5 and len(set(seeds)) == 1


@pytest.fixture(autouse=True)
def _no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "MAX_BACKOFF_SECONDS", 0.0)


def test_an_edit_becomes_a_job(service: Service) -> None:
    files = {"image": ("a.png", b"image", "image/png"), "mask": ("m.png", b"mask", "image/png")}
    data = {"prompt": "p", "seed": "7", "strength": "0.5"}
    response = service.client.post(EDITS, data=data, files=files, headers=ASYNC)
    assert response.status_code == 202, response.text
    done = service.wait(f"{JOBS}/{response.json()['id']}")
    assert (done["kind"], done["result"]["size"]) == ("edit", "16x8")
    assert service.backend.uploads == [Upload(b"image", b"mask", None, MODEL.sizes)]
    cost = done["result"]["usage"]["safelight"]
    assert cost["edit"]["inpainting"] and [entry["field"] for entry in cost["adjusted"]] == ["image"]


def test_an_upload_that_cannot_be_read_fails_the_job(service: Service) -> None:
    response = service.client.post(
        EDITS, data={"prompt": "p"}, files={"image": ("a.png", b"bad", "image/png")}, headers=ASYNC
    )
    failed = service.wait(f"{JOBS}/{response.json()['id']}", "failed")
    assert (failed["error"]["param"], failed["error"]["code"]) == ("image", "invalid_value")


def test_a_request_with_a_fault_is_no_job(service: Service) -> None:
    response = service.client.post(ROUTE, json={"prompt": ""}, headers=ASYNC)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")
    assert service.client.get(JOBS).json()["data"] == []


def test_a_job_is_not_streamed(service: Service) -> None:
    response = service.client.post(ROUTE, json=BODY | {"stream": True}, headers=ASYNC)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "stream")


def test_a_failed_job_says_why(service: Service) -> None:
    service.backend.errors = [BrokenImage("The model produced invalid numbers.")]
    path = service.submit()
    failed = service.wait(path, "failed")
    assert failed["error"] == {
        "message": "The model produced invalid numbers.",
        "type": "server_error",
        "param": None,
        "code": "broken_picture",
        "forecast": None,
    }
    response = service.client.get(f"{path}/content")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "broken_picture")


def test_a_job_is_cancelled_while_it_is_drawn(service: Service) -> None:
    service.close_gate()
    path = service.submit(n=2)
    service.until(lambda: len(service.backend.calls) >= 3)  # with the warm-up
    response = service.client.delete(path)
    assert (response.status_code, response.json()["state"]) == (200, "cancelled")
    assert service.backend.num_cancelled == 2, "the images have left the batch"
    service.open_gate()
    assert service.client.delete(path).json()["state"] == service.show(path)["state"] == "cancelled"
    response = service.client.get(f"{path}/content")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "interrupted")
    service.until(lambda: [record.outcome for record in service.records] == ["aborted"])


def test_an_image_of_an_open_job_is_not_there_yet(service: Service) -> None:
    service.close_gate()
    response = service.client.get(f"{service.submit()}/content")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "job_not_done")


def test_there_is_no_image_beyond_the_last(service: Service) -> None:
    path = service.submit(n=2)
    service.wait(path)
    assert service.client.get(f"{path}/content?index=1").status_code == 200
    assert service.client.get(f"{path}/content?index=2").status_code == 400


@pytest.mark.parametrize("method", ["get", "delete"])
@pytest.mark.parametrize("job_id", ["job_none", "..%2f", "x" * 300])
def test_a_job_that_is_not_there(method: str, job_id: str, service: Service) -> None:
    response = getattr(service.client, method)(f"{JOBS}/{job_id}")
    assert response.status_code == 404


def test_pages_of_a_list(service: Service) -> None:
    paths = [service.submit() for _ in range(5)]
    job_ids = {path.rpartition("/")[2] for path in paths}
    first = service.client.get(f"{JOBS}?limit=3").json()
    rest = service.client.get(f"{JOBS}?limit=3&after={first['last_id']}").json()
    assert (first["has_more"], rest["has_more"], len(first["data"]), len(rest["data"])) == (True, False, 3, 2)
    assert {job["id"] for page in (first, rest) for job in page["data"]} == job_ids
    for path in paths:
        service.wait(path)
    assert service.client.get(f"{JOBS}?state=queued&state=running").json()["data"] == []
    assert len(service.client.get(f"{JOBS}?state=done").json()["data"]) == 5


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "state=lost", "limit=x"])
def test_a_list_with_a_faulty_query(query: str, service: Service) -> None:
    assert service.client.get(f"{JOBS}?{query}").status_code == 400


def test_a_list_after_a_job_that_is_not_there(service: Service) -> None:
    assert service.client.get(f"{JOBS}?after=job_none").status_code == 404


def test_events_tell_the_progress_until_the_end(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "LOOK_SECONDS", 0.01)
    states: list[str] = []
    make_event = events._event

    def count_event(job: JobObject) -> bytes:
        states.append(job.state)
        return make_event(job)

    monkeypatch.setattr(events, "_event", count_event)
    service.close_gate()
    path = service.submit()
    service.wait(path, "running")
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(service.client.get, path, headers={"accept": "text/event-stream"})
        service.until(lambda: bool(states))
        service.open_gate()
        text = answer.result().text
    assert answer.result().headers["content-type"].startswith("text/event-stream")
    sent = re.findall(r"^event: (.*)\ndata: (.*)$", text, re.MULTILINE)
    jobs = [json.loads(data) for _, data in sent]
    assert [name for name, _ in sent] == [f"image_job.{job['state']}" for job in jobs]
    assert [job["state"] for job in jobs] == ["running", "done"]
    assert jobs[-1]["result"]["data"]


def test_a_job_is_recorded_once_with_its_images(service: Service) -> None:
    path = service.submit({"x-request-id": "mine"}, n=2, user="someone")
    service.wait(path)
    service.until(lambda: bool(service.records))
    [record] = service.records
    assert (record.outcome, record.num_images, len(record.image_usages)) == ("done", 2, 2)
    assert (record.request_id, record.model, record.store.num_bytes > 0) == ("mine", MODEL.id, True)
    assert record.user


def test_jobs_go_on_after_a_restart(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, job_concurrency=1)
    with serving(settings) as service:
        done = service.submit(prompt="first")
        service.wait(done)
        service.close_gate()
        paths = [service.submit(prompt=f"prompt {index}") for index in range(3)]
        service.wait(paths[0], "running")
    with serving(settings) as service:
        for path in paths:
            job = service.wait(path)
            assert service.client.get(f"{path}/content").status_code == 200
        assert job["attempts"] == 1
        assert service.show(paths[0])["attempts"] == 2
        assert sorted(params.prompt for params, _ in service.backend.drawn if params.seed == 7) == [
            f"prompt {index}" for index in range(3)
        ]
        image = service.client.get(f"{paths[1]}/content").content
        assert image == fake_image(make_params(prompt="prompt 1", seed=7), ImageFormat())


@pytest.mark.parametrize("changes", [{"jobs": False}, {"image_store": "none"}], ids=str)
def test_a_service_without_jobs_says_so(changes: dict[str, Any], tmp_path: Path) -> None:
    with serving(make_settings(tmp_path, **changes)) as service:
        for headers in (ASYNC, {"idempotency-key": "k"}):
            response = service.draw(headers)
            assert (response.status_code, response.json()["error"]["code"]) == (400, "jobs_are_off")
        assert service.client.get(JOBS).status_code == 404
        assert service.draw().status_code == 200


def test_a_database_that_is_away_is_said(tmp_path: Path) -> None:
    (tmp_path / "database").write_text("not a folder")
    with serving(make_settings(tmp_path)) as service:
        response = service.draw(ASYNC)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "jobs_unavailable")
        assert service.draw().status_code == 200


def test_no_database_is_made_without_jobs(tmp_path: Path) -> None:
    with serving(make_settings(tmp_path)) as service:
        service.draw()
    assert not (tmp_path / "database").exists()


def test_too_many_jobs_are_refused(tmp_path: Path) -> None:
    with serving(make_settings(tmp_path, max_jobs_per_key=2)) as service:
        service.close_gate()
        for _ in range(2):
            service.submit()
        response = service.draw(ASYNC)
        assert (response.status_code, response.json()["error"]["code"]) == (429, "too_many_jobs")
        service.open_gate()


def test_the_receiver_of_a_jobs_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "POLL_SECONDS", 0.05)
    with receiving() as receiver:
        changes = {"webhook_origins": receiver.origin, "webhook_secret": SECRET}
        with serving(make_settings(tmp_path, webhook_url=f"{receiver.origin}/all", **changes)) as service:
            service.wait(service.submit({"x-safelight-webhook": f"{receiver.origin}/mine"}))
            service.wait(service.submit())
            service.until(lambda: len(receiver.requests) == 2)
            response = service.draw(ASYNC | {"x-safelight-webhook": "https://evil.test/"})
            assert response.status_code == 400
            assert response.json()["error"]["param"] == "x-safelight-webhook"
    assert sorted(path for path, _, _ in receiver.requests) == ["/all", "/mine"]


def test_without_origins_a_receiver_is_refused(service: Service) -> None:
    response = service.draw(ASYNC | {"x-safelight-webhook": "https://hooks.test/"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "x-safelight-webhook")
