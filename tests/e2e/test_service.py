"""The whole service as a user sees it: a real `safelight serve`, real Ray, real weights, over loopback."""

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import psutil
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from safelight.pipeline.engine.source_image import read_source
from tests.broken import tiny_without
from tests.live import SAFELIGHT, LiveService, serving
from tests.service.http.uploads import mask, photo, png

PATIENCE = 120.0  # seconds; the machine may be doing something else
ROUTE = "/v1/images/generations"
# As many steps as a request can have: even where a tick takes two milliseconds, there is time to ask for
# metrics while the images are in the engine.
LONG = {"prompt": "a red apple", "num_inference_steps": 200, "solver": "ddpm"}


@pytest.fixture
def http(live_service: LiveService) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=live_service.url, timeout=PATIENCE) as client:
        yield client


def draw(http: httpx2.Client, **fields: Any) -> dict[str, Any]:
    answer = http.post(
        "/v1/images/generations", json={"prompt": "a red apple", "num_inference_steps": 4, **fields}
    )
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def metric(http: httpx2.Client, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(http.get("/metrics").text)
    return sum(
        s.value
        for family in families
        for s in family.samples
        if s.name == name and labels.items() <= s.labels.items()
    )


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def in_engine(http: httpx2.Client) -> float:
    """How many images the engine holds, by its own answer."""
    states = ("running", "waiting")
    return sum(metric(http, f"safelight_stage_images_{state}", stage="denoise") for state in states)


def replica_of(service: LiveService, deployment: str) -> psutil.Process:
    title = re.compile(rf"ServeReplica:safelight:{deployment}(?!-)")  # and not that of another model
    family = psutil.Process(service.process.pid).children(recursive=True)
    return next(child for child in family if title.search(" ".join(child.cmdline())))


def test_the_openai_client_draws_an_image(live_service: LiveService) -> None:
    client = openai.OpenAI(base_url=f"{live_service.url}/v1", api_key="none", timeout=PATIENCE, max_retries=0)
    with client:
        answer = client.images.generate(
            prompt="a red apple",
            model="gpt-image-1",
            size="auto",
            quality="low",
            extra_body={"seed": 1, "num_inference_steps": 4},
        )
        names = [model.id for model in client.models.list()]
    assert answer.data and answer.data[0].b64_json and answer.usage
    image = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json)))
    assert f"{image.width}x{image.height}" == answer.size
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert names == ["emoji-128", "emoji-128-turbo"]
    assert (answer.usage.model_extra or {})["safelight"]["model"] == names[0]


def test_the_openai_client_edits_an_image_and_its_bytes_do_not_depend_on_batch_mates(
    live_service: LiveService, http: httpx2.Client
) -> None:
    """Through Ray's object store, with a mask, beside generations; outside the mask every pixel is kept."""
    client = openai.OpenAI(base_url=f"{live_service.url}/v1", api_key="none", timeout=PATIENCE, max_retries=0)
    source = photo(96, 64)
    options = {"seed": 3, "num_inference_steps": 6, "strength": 0.7}

    def edit() -> list[str | None]:
        answer = client.images.edit(
            image=("a.png", png(source)), mask=("m.png", png(mask(96, 64))), prompt="a red apple", n=2,
            extra_body=options,
        )  # fmt: skip
        return [image.b64_json for image in answer.data or []]

    with client, ThreadPoolExecutor() as threads:
        alone = edit()
        generations = [threads.submit(draw, http, num_inference_steps=9 + k, seed=k) for k in range(4)]
        edits = [threads.submit(edit) for _ in range(2)]
        assert [future.result() for future in edits] == [alone] * 2
        for future in generations:
            future.result()
    first = Image.open(io.BytesIO(base64.b64decode(alone[0] or "")))
    expected = read_source(png(source), None, lambda _: first.size).pixels
    kept = np.asarray(first)[:, : first.width // 2 - 1]
    assert np.array_equal(kept, expected[:, : first.width // 2 - 1])


def test_an_upload_that_is_no_image_is_refused_with_its_reason(http: httpx2.Client) -> None:
    answer = http.post("/v1/images/edits", data={"prompt": "a"}, files={"image": b"text"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("image must be a PNG, JPEG or WebP file")


def test_the_openai_client_understands_a_refusal(live_service: LiveService) -> None:
    client = openai.OpenAI(base_url=f"{live_service.url}/v1", api_key="none", timeout=PATIENCE, max_retries=0)
    with client, pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="a red apple", n=11)
    assert refused.value.param == "n"
    assert refused.value.request_id


def test_curl_draws_an_image(live_service: LiveService) -> None:
    command = [
        "curl",
        "-s",
        f"{live_service.url}/v1/images/generations",
        "-H",
        "content-type: application/json",
    ]
    done = subprocess.run([*command, "-d", '{"prompt": "a red apple"}'], capture_output=True, check=True)
    assert base64.b64decode(json.loads(done.stdout)["data"][0]["b64_json"]).startswith(b"\x89PNG")


@pytest.mark.parametrize(("name", "magic"), [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8"), ("webp", b"RIFF")])
def test_images_have_the_requested_format(http: httpx2.Client, name: str, magic: bytes) -> None:
    assert base64.b64decode(draw(http, output_format=name)["data"][0]["b64_json"]).startswith(magic)


def test_the_same_request_gives_the_same_bytes_alone_and_in_a_batch(http: httpx2.Client) -> None:
    alone = draw(http, seed=3)["data"]
    batch_mates = [
        {
            "prompt": f"{k} cats",
            "num_inference_steps": 8 + 3 * k,
            "guidance_scale": 1.0 + k,
            "solver": ("euler", "ddpm", "dpmpp_2m")[k % 3],
        }
        for k in range(8)
    ]
    with ThreadPoolExecutor(9) as pool:
        answers = [pool.submit(draw, http, **fields) for fields in batch_mates]
        together = pool.submit(draw, http, seed=3).result()["data"]
        assert all(answer.result()["data"] for answer in answers)
    assert together == alone


def test_the_command_line_gives_the_same_bytes(http: httpx2.Client, tmp_path: Path) -> None:
    path = tmp_path / "apple.png"
    served = draw(http, seed=3, n=2)
    model = served["usage"]["safelight"]["model"]
    flags = ["--model", model, "--seed", "3", "--steps", "4", "-n", "2", "-o", str(path)]
    subprocess.run([SAFELIGHT, "generate", "a red apple", *flags], check=True)
    for k, image in enumerate(served["data"]):
        assert base64.b64decode(image["b64_json"]) == path.with_stem(f"apple-{k}").read_bytes()


@pytest.mark.parametrize(
    ("method", "path", "kwargs", "status", "param"),
    [
        ("POST", "/v1/images/generations", {"json": {"prompt": ""}}, 400, "prompt"),
        ("POST", "/v1/images/generations", {"json": {"prompt": "p", "size": "0x3"}}, 400, "size"),
        ("POST", "/v1/images/generations", {"json": {"prompt": "p", "solver": "magic"}}, 400, "solver"),
        (
            "POST",
            "/v1/images/generations",
            {"json": {"prompt": "p", "colour": "red"}, "headers": {"x-safelight-strict": "1"}},
            400,
            "colour",
        ),
        ("POST", "/v1/images/generations", {"json": {"prompt": "p", "model": "sdxl"}}, 404, "model"),
        (
            "POST",
            "/v1/images/generations",
            {"content": b"{", "headers": {"content-type": "application/json"}},
            400,
            None,
        ),
        (
            "POST",
            "/v1/images/generations",
            {"content": b" " * (2 << 20), "headers": {"content-type": "application/json"}},
            413,
            None,
        ),
        ("POST", "/v1/images/generations", {"content": b"prompt=p"}, 415, None),
        ("GET", "/v1/images/generations", {}, 405, None),
        ("GET", "/v1/images", {}, 404, None),
    ],
    ids=["prompt", "size", "solver", "field", "model", "json", "large", "type", "method", "route"],
)
def test_a_bad_request_gets_openais_error_object(
    http: httpx2.Client, method: str, path: str, kwargs: dict[str, Any], status: int, param: str | None
) -> None:
    answer = http.request(method, path, **kwargs)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert set(error) == {"message", "type", "param", "code"}
    assert len(answer.headers.get_list("x-request-id")) == 1


@pytest.mark.parametrize("sent", ["job-17", "my request 1", "x" * 129, "a/b+c="])
def test_a_request_has_one_id_everywhere(live_service: LiveService, http: httpx2.Client, sent: str) -> None:
    """In the answer, its error, the accounting, and one line of the command's output."""
    answer = http.post(ROUTE, json={"prompt": "x", "n": 0}, headers={"x-request-id": sent})
    [request_id] = answer.headers.get_list("x-request-id")
    assert (request_id == sent) == (sent == "job-17")
    assert answer.json()["request_id"] == request_id
    latest = http.get("/v1/accounting", params={"latest": 1}).json()["latest"]
    assert [record["request_id"] for record in latest] == [request_id]

    def lines() -> list[str]:
        return [line for line in live_service.log.read_text().splitlines() if request_id in line]

    wait_until(lambda: len(lines()) > 0)
    [line] = lines()
    assert f" warning gateway: request id={request_id} method=POST path={ROUTE} status=400 " in line
    assert 'code=invalid_value param=n cause="n must be' in line


def test_a_client_that_disconnects_frees_the_engine(http: httpx2.Client) -> None:
    wait_until(lambda: in_engine(http) == 0)
    aborted = metric(http, "safelight_requests_total", outcome="aborted")
    denoised = metric(http, "safelight_stage_images_finished", stage="denoise")
    body = json.dumps({**LONG, "n": 10}).encode()
    with socket.create_connection((http.base_url.host, http.base_url.port)) as client:
        head = f"POST {ROUTE} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        wait_until(lambda: in_engine(http) > 0)
        assert metric(http, "safelight_images_in_flight") == 10
    wait_until(lambda: metric(http, "safelight_images_in_flight") == 0)
    wait_until(lambda: metric(http, "safelight_requests_total", outcome="aborted") == aborted + 1)
    wait_until(lambda: in_engine(http) == 0)
    assert metric(http, "safelight_stage_images_finished", stage="denoise") == denoised


def test_an_image_of_a_replica_that_dies_is_drawn_by_another(
    live_service: LiveService, http: httpx2.Client
) -> None:
    fields = {**LONG, "num_inference_steps": 60, "seed": 3, "n": 2}
    expected = draw(http, **fields)["data"]
    denoiser = replica_of(live_service, "Denoiser").pid  # found before the images are in it
    with ThreadPoolExecutor(1) as pool:
        resent = metric(http, "safelight_images_retried_total")
        answer = pool.submit(draw, http, **fields)
        wait_until(lambda: metric(http, "safelight_stage_images_running", stage="denoise") == 2)
        os.kill(denoiser, signal.SIGKILL)
        assert answer.result()["data"] == expected
    assert metric(http, "safelight_images_retried_total") == resent + 2
    wait_until(lambda: http.get("/readyz").status_code == 200)


def test_a_gateway_that_dies_loses_nothing_through_the_official_client(
    live_service: LiveService, http: httpx2.Client
) -> None:
    """Its requests are sent again; connections that come before the next gateway wait for it."""
    fields = {**LONG, "num_inference_steps": 60, "seed": 5}
    expected = draw(http, **fields)["data"][0]["b64_json"]
    client = openai.OpenAI(base_url=f"{live_service.url}/v1", api_key="none", timeout=PATIENCE)
    prompt = str(fields.pop("prompt"))

    def generate() -> str | None:
        data = client.images.generate(prompt=prompt, extra_body=fields).data
        return data[0].b64_json if data else None

    gateway = replica_of(live_service, "Gateway")
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(generate) for _ in range(2)]
        wait_until(lambda: metric(http, "safelight_stage_images_running", stage="denoise") == 2)
        gateway.kill()
        gateway.wait(PATIENCE)
        answers += [pool.submit(generate) for _ in range(2)]
        assert [answer.result() for answer in answers] == 4 * [expected]
    assert replica_of(live_service, "Gateway").pid != gateway.pid
    wait_until(lambda: http.get("/readyz").status_code == 200)


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_colocated_service_draws_and_leaves_nothing_behind(tmp_path: Path, how: signal.Signals) -> None:
    with serving(tmp_path, "--model", "tiny", "--stages", "colocated") as service:
        with httpx2.Client(base_url=service.url, timeout=PATIENCE) as http:
            assert draw(http)["data"]
            family = psutil.Process(service.process.pid).children(recursive=True)
            with ThreadPoolExecutor(1) as pool:
                in_flight = pool.submit(draw, http, **LONG)
                wait_until(lambda: in_engine(http) > 0)
                service.process.send_signal(how)
                assert in_flight.result()["data"]  # an admitted request is answered
        assert service.process.wait(PATIENCE) == 0
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


@pytest.mark.long
def test_an_invalid_checkpoint_is_reported_in_one_line(tmp_path: Path) -> None:
    model = tiny_without("proj_out.weight", tmp_path)
    done = subprocess.run(
        [SAFELIGHT, "serve", "--port", "0", "--model", model],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert "proj_out.weight" in line
