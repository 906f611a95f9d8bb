"""Batches through OpenAI's client: made, drawn, read, listed, cancelled, expired, and told."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from openai import NotFoundError

from safelight.pipeline.params import BACKGROUND, ONLY_CALLER
from safelight.service.batches import batch_store
from safelight.service.errors import BrokenImage, DeadlineExceeded, QueueFull, StageLost
from tests.fakes import MODEL, fake_image, make_params
from tests.service.conftest import ROUTE
from tests.service.http.batches.service import Batches, hurry, make_client, make_line
from tests.service.http.jobs.service import JOBS, make_settings, serving
from tests.service.http.uploads import data_url
from tests.service.jobs.receiver import receiving
from tests.service.jobs.test_webhooks import SECRET

EDITS = "/v1/images/edits"
NUM_LINES = 20


def test_a_batch_of_generations(batches: Batches) -> None:
    lines = [make_line(f"line {n}", seed=n, output_format="webp") for n in range(NUM_LINES)]
    batch = batches.create(*lines, metadata={"for": "tests"})
    assert (batch.object, batch.status, batch.endpoint) == ("batch", "validating", ROUTE)
    assert (batch.completion_window, batch.metadata) == ("24h", {"for": "tests"})
    done = batches.wait(batch)
    assert done.request_counts is not None
    counts = done.request_counts.total, done.request_counts.completed, done.request_counts.failed
    assert counts == (NUM_LINES, NUM_LINES, 0)
    times = [done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at, done.expires_at]
    assert all(times) and times == sorted(times)  # type: ignore[type-var]
    assert (done.errors, done.error_file_id, done.failed_at, done.cancelled_at) == (None, None, None, None)
    output = batches.read(done.output_file_id)
    assert [line["custom_id"] for line in output] == [line["custom_id"] for line in lines]
    assert len({line["id"] for line in output}) == NUM_LINES
    for n, line in enumerate(output):
        assert set(line) == {"id", "custom_id", "response", "error"} and line["error"] is None
        response = line["response"]
        assert (response["status_code"], response["request_id"]) == (200, f"{batch.id}-{n + 1}")
        [image] = response["body"]["data"]
        plain = batches.service.draw(seed=n, output_format="webp").json()
        assert set(image) == {"b64_json"} and image == plain["data"][0]
        assert set(response["body"]) == set(plain)


def test_every_image_is_drawn_once_and_recorded(batches: Batches) -> None:
    done = batches.wait(batches.create(*[make_line(str(n), user="someone") for n in range(5)]))
    batches.service.until(lambda: len(batches.service.records) == 5)
    assert batches.service.num_drawn == 5
    records = batches.service.records
    assert {record.request_id for record in records} == {f"{done.id}-{n + 1}" for n in range(5)}
    assert {record.outcome for record in records} == {"done"} and all(record.user for record in records)


def test_lines_are_drawn_in_the_background_and_others_are_not(batches: Batches) -> None:
    batches.wait(batches.create(make_line("a", prompt="line")))
    batches.service.draw(prompt="request")
    batches.service.wait(batches.service.submit(prompt="job"))
    shares = {params.prompt: context.share for params, _, context in batches.service.backend.calls}
    assert shares["line"] == BACKGROUND
    assert (shares["request"], shares["job"]) == (ONLY_CALLER, ONLY_CALLER)


def test_only_a_window_of_a_batch_is_drawn_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    with serving(make_settings(tmp_path, batch_images=4)) as service:
        batches = Batches(service, make_client(service.client))
        service.close_gate()
        batch = batches.create(*[make_line(str(n), n=2) for n in range(10)])
        service.until(lambda: len(service.backend.calls) == 1 + 4)  # with the warm-up
        assert service.client.get(JOBS).json()["data"] == []
        counts = batches.client.batches.retrieve(batch.id).request_counts
        assert counts is not None and (counts.total, counts.completed, counts.failed) == (10, 0, 0)
        service.open_gate()
        batches.wait(batch)
        assert service.num_drawn == 20


def test_a_batch_of_edits(batches: Batches) -> None:
    image = {"image_url": data_url(b"image", "image/png")}
    lines = [make_line("a", EDITS, images=[image], strength=0.5), make_line("b", EDITS)]
    done = batches.wait(batches.create(*lines, endpoint=EDITS))
    [line] = batches.read(done.output_file_id)
    assert line["custom_id"] == "a" and line["response"]["body"]["size"] == "16x8"
    assert [upload.image for upload in batches.service.backend.uploads] == [b"image"]
    [line] = batches.read(done.error_file_id)
    assert (line["custom_id"], line["response"]["body"]["error"]["param"]) == ("b", "image")


def test_links_are_answered_where_they_are_asked_for(batches: Batches) -> None:
    done = batches.wait(batches.create(make_line("a", response_format="url"), make_line("b")))
    linked, plain = [line["response"]["body"]["data"][0] for line in batches.read(done.output_file_id)]
    assert set(linked) == {"url"} and set(plain) == {"b64_json"}
    image = batches.service.client.get(linked["url"].removeprefix("http://testserver")).content
    assert base64.b64encode(image).decode() == plain["b64_json"]


def test_a_request_with_a_fault_is_a_line_of_the_errors(batches: Batches) -> None:
    lines = [
        make_line("good"),
        make_line("many", n=99),
        make_line("stream", stream=True),
        make_line("empty", prompt=""),
    ]
    done = batches.wait(batches.create(*lines))
    assert done.request_counts is not None
    assert (done.request_counts.completed, done.request_counts.failed) == (1, 3)
    errors = {line["custom_id"]: line for line in batches.read(done.error_file_id)}
    params = {name: line["response"]["body"]["error"]["param"] for name, line in errors.items()}
    assert params == {"many": "n", "stream": "stream", "empty": "prompt"}
    assert {line["response"]["status_code"] for line in errors.values()} == {400}
    assert [line["custom_id"] for line in batches.read(done.output_file_id)] == ["good"]


def test_a_line_that_cannot_be_drawn_is_an_error(batches: Batches) -> None:
    batches.service.backend.errors = [BrokenImage("The model produced invalid numbers.")]
    done = batches.wait(batches.create(make_line("a")))
    [line] = batches.read(done.error_file_id)
    assert (line["response"]["status_code"], done.output_file_id) == (503, None)
    assert line["response"]["body"]["error"]["code"] == "broken_picture"


@pytest.mark.parametrize("error", [QueueFull, DeadlineExceeded], ids=str)
def test_a_line_that_others_keep_waiting_does_not_fail(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr("safelight.service.jobs.runner.BUSY_SECONDS", 0.0)
    with serving(make_settings(tmp_path)) as service:
        service.backend.errors = [error() for _ in range(7)]
        batches = Batches(service, make_client(service.client))
        done = batches.wait(batches.create(make_line("a")))
        assert done.request_counts is not None and done.request_counts.completed == 1


def test_an_input_file_with_faults_fails_the_batch(batches: Batches) -> None:
    lines = [make_line("a"), make_line("a"), make_line("b", url="/v1/chat/completions"), {"custom_id": "c"}]
    failed = batches.wait(batches.create(*lines), "failed")
    assert failed.errors is not None and failed.errors.data is not None and failed.failed_at
    assert [(fault.line, fault.code) for fault in failed.errors.data] == [
        (2, "duplicate_custom_id"),
        (3, "invalid_url"),
        (4, "missing_required_parameter"),
    ]
    assert failed.request_counts is not None and failed.request_counts.total == 0
    assert (failed.output_file_id, failed.error_file_id, batches.service.num_drawn) == (None, None, 0)


def test_a_batch_is_cancelled_while_it_is_drawn(batches: Batches) -> None:
    batches.service.close_gate()
    batch = batches.create(*[make_line(str(n)) for n in range(40)])
    batches.service.until(lambda: len(batches.service.backend.calls) > 10)
    cancelling = batches.client.batches.cancel(batch.id)
    assert cancelling.status in ("cancelling", "cancelled") and cancelling.cancelling_at
    assert batches.service.backend.num_cancelled == len(batches.service.backend.calls) - 1
    cancelled = batches.wait(batch, "cancelled")
    assert cancelled.cancelled_at and cancelled.output_file_id is None
    errors = batches.read(cancelled.error_file_id)
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"} and len(errors) == 40
    batches.service.open_gate()
    assert batches.client.batches.cancel(batch.id).status == "cancelled"
    assert batches.service.num_drawn == 0


def test_what_was_drawn_before_the_end_is_kept(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_store, "DAY", 1.0)
    batches.service.close_gate()
    batch = batches.create(*[make_line(str(n)) for n in range(40)])
    batches.service.until(lambda: len(batches.service.backend.calls) > 10)
    expired = batches.wait(batch, "expired")
    assert expired.expired_at and expired.request_counts is not None
    assert expired.request_counts.failed == 40
    errors = batches.read(expired.error_file_id)
    assert {line["error"]["code"] for line in errors} == {"batch_expired"}
    batches.service.open_gate()


def test_metrics_say_what_is_open(batches: Batches) -> None:
    def values() -> dict[str, float]:
        lines = batches.service.client.get("/metrics").text.splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line.startswith("safelight_batch")]
        return {name: float(value) for name, value in pairs}

    batches.service.close_gate()
    batch = batches.create(*[make_line(str(n)) for n in range(40)])
    batches.service.until(lambda: len(batches.service.backend.calls) == 1 + 16)
    assert values() == {
        'safelight_batches{status="validating"}': 0,
        'safelight_batches{status="in_progress"}': 1,
        'safelight_batches{status="finalizing"}': 0,
        'safelight_batches{status="cancelling"}': 0,
        'safelight_batch_lines{state="queued"}': 24,
        'safelight_batch_lines{state="running"}': 16,
    }
    batches.service.open_gate()
    batches.wait(batch)
    assert set(values().values()) == {0}


def test_pages_of_a_list(batches: Batches) -> None:
    made = [batches.create(make_line("a")).id for _ in range(5)]
    page = batches.client.batches.list(limit=2)
    assert len(page.data) == 2 and page.has_more
    listed = [batch.id for batch in page]  # all pages
    assert sorted(listed) == sorted(made)
    assert batches.client.batches.list(limit=100).has_more is False


def test_a_batch_goes_on_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    settings = make_settings(tmp_path, batch_images=2)
    with serving(settings) as service:
        service.close_gate()
        batch = Batches(service, make_client(service.client)).create(
            *[make_line(str(n), prompt=f"prompt {n}") for n in range(6)]
        )
        service.until(lambda: len(service.backend.calls) == 3)
    with serving(settings) as service:
        batches = Batches(service, make_client(service.client))
        done = batches.wait(batch)
        drawn = sorted(params.prompt for params, _ in service.backend.drawn if params.seed == 7)
        assert drawn == [f"prompt {n}" for n in range(6)]
        for n, line in enumerate(batches.read(done.output_file_id)):
            [image] = line["response"]["body"]["data"]
            plain = fake_image(make_params(prompt=f"prompt {n}", seed=7), service.backend.calls[1][1])
            assert base64.b64decode(image["b64_json"]) == plain


def test_seeds_are_chosen_once(batches: Batches) -> None:
    batches.service.backend.image_errors = [StageLost(), StageLost()]  # also of the dispatcher's own retry
    batches.wait(batches.create({**make_line("a"), "body": {"prompt": "seedless"}}))
    seeds = [params.seed for params, _, _ in batches.service.backend.calls if params.prompt == "seedless"]
    assert len(seeds) == 3 and len(set(seeds)) == 1


def test_an_image_that_the_store_has_deleted_is_said(batches: Batches, tmp_path: Path) -> None:
    done = batches.wait(batches.create(make_line("a"), make_line("b")))
    next((tmp_path / "images").glob("*.png")).unlink()
    assert done.output_file_id is not None
    text = batches.client.files.content(done.output_file_id).text
    statuses = sorted(json.loads(line)["response"]["status_code"] for line in text.splitlines())
    assert statuses == [200, 404]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"endpoint": "/v1/chat/completions"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
        ({"input_file_id": None}, "input_file_id"),
    ],
    ids=str,
)
def test_a_batch_with_a_fault_is_refused(changes: dict[str, Any], param: str, batches: Batches) -> None:
    body = {"input_file_id": batches.upload(make_line("a")), "endpoint": ROUTE, "completion_window": "24h"}
    response = batches.service.client.post("/v1/batches", json=body | changes)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_a_batch_that_is_not_there(batches: Batches) -> None:
    for call in (batches.client.batches.retrieve, batches.client.batches.cancel):
        with pytest.raises(NotFoundError):
            call("batch_none")
    with pytest.raises(NotFoundError):
        batches.client.batches.create(input_file_id="file-none", endpoint=ROUTE, completion_window="24h")


def test_too_many_batches_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    with serving(make_settings(tmp_path, max_batches_per_key=1, max_batch_lines=2)) as service:
        batches = Batches(service, make_client(service.client))
        service.close_gate()
        batches.create(make_line("a"))
        body = {"input_file_id": batches.upload(make_line("a")), "endpoint": ROUTE}
        response = service.client.post("/v1/batches", json=body | {"completion_window": "24h"})
        assert (response.status_code, response.json()["error"]["code"]) == (429, "too_many_batches")
        service.open_gate()
        service.until(lambda: all(batch.status == "completed" for batch in batches.client.batches.list()))
        failed = batches.wait(batches.create(*[make_line(str(n)) for n in range(3)]), "failed")
        assert failed.errors is not None and failed.errors.data is not None
        assert failed.errors.data[0].code == "too_many_requests"


def test_the_receiver_of_a_batchs_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    with receiving() as receiver:
        changes = {"webhook_origins": receiver.origin, "webhook_secret": SECRET}
        with serving(make_settings(tmp_path, webhook_url=f"{receiver.origin}/all", **changes)) as service:
            batches = Batches(service, make_client(service.client))
            batch = batches.create(make_line("a"))
            service.until(lambda: len(receiver.requests) == 1)
            [(path, headers, body)] = receiver.requests
            client = batches.client.with_options(webhook_secret=SECRET)
            event = client.webhooks.unwrap(body, headers)
            assert (path, event.type) == ("/all", "batch.completed")
            assert event.data.id == batch.id  # type: ignore[union-attr]


def test_a_service_without_jobs_has_no_batches(tmp_path: Path) -> None:
    with serving(make_settings(tmp_path, jobs=False)) as service:
        assert service.client.get("/v1/batches").status_code == 404
        assert service.client.get("/v1/files").status_code == 404
    assert MODEL.id == "fake-8"
