"""Models come and go in a running service: every request is answered as the model alone answers it."""

import base64
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, Self

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

import safelight
from tests.live import serving
from tests.service.conftest import ROUTE
from tests.tiny_models import write_tiny_model

PATIENCE = 300.0
ADMIN = {"authorization": "Bearer operator"}
STEPS = 4
SEEDS = range(4)


@dataclass(frozen=True)
class Exchange:
    """A request: for which model and seed, when it began and ended, and the answer."""

    model: str
    seed: int
    began: float
    ended: float
    answer: httpx2.Response

    @property
    def image(self) -> bytes:
        return base64.b64decode(self.answer.json()["data"][0]["b64_json"])


@dataclass(frozen=True)
class Folders:
    """The models of the test beside `tiny`; only `strange` has a text encoder and a decoder of its own."""

    old: Path
    new: Path
    strange: Path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    path = tmp_path_factory.mktemp("models")
    return Folders(
        write_tiny_model(path / "old", seed=1),
        write_tiny_model(path / "new", seed=2),
        write_tiny_model(path / "strange", seed=3, shares=()),
    )


@pytest.fixture(scope="module")
def alone(folders: Folders) -> dict[tuple[str, int], bytes]:
    """The bytes that each model gives alone, without a service, by its name and the seed."""
    return {
        (Path(name).name, seed): image
        for name in ("tiny", folders.old, folders.new)
        for seed, image in draw_alone(str(name)).items()
    }


def draw_alone(model: str, **settings: str) -> dict[int, bytes]:
    """The images of a model without a service, by their seeds."""
    with safelight.Pipeline(model, **settings) as pipeline:
        drawn = {
            seed: pipeline.generate("a red apple", seed=seed, num_inference_steps=STEPS) for seed in SEEDS
        }
    return {seed: image.bytes for seed, [image] in drawn.items()}


class Load:
    """Requests for several models from several threads at once, until it is stopped."""

    def __init__(self, url: str, pause: float = 1.0) -> None:
        self._pause = pause
        self.exchanges: list[Exchange] = []
        self._http = httpx2.Client(base_url=url, timeout=PATIENCE)
        self._should_stop = Event()

    def run(self, model: str) -> None:
        """Send one request after another, with pauses: a change would take minutes on cores without any."""
        seed = 0
        while not self._should_stop.wait(self._pause):
            self.exchanges.append(self.draw(model, seed % len(SEEDS)))
            seed += 1

    def draw(self, model: str, seed: int) -> Exchange:
        body = {"prompt": "a red apple", "model": model, "seed": seed, "num_inference_steps": STEPS}
        began = time.monotonic()
        answer = self._http.post(ROUTE, json=body)
        return Exchange(model, seed, began, time.monotonic(), answer)

    def answered(self, *models: str) -> int:
        return sum(exchange.model in models for exchange in list(self.exchanges))

    def wait_for(self, number: int, *models: str) -> None:
        """Return when so many more requests for each of `models` have been answered."""
        targets = {model: self.answered(model) + number for model in models}
        give_up = time.monotonic() + PATIENCE
        while any(self.answered(model) < target for model, target in targets.items()):
            assert time.monotonic() < give_up, "requests are not answered"
            time.sleep(0.05)

    def stop(self) -> None:
        self._should_stop.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._http.close()


def operate(url: str, method: str, path: str, **body: str) -> httpx2.Response:
    """Change the models."""
    json = body or None
    return httpx2.request(method, f"{url}/v1/models{path}", json=json, headers=ADMIN, timeout=PATIENCE)


def replicas(url: str) -> dict[tuple[str, str], int]:
    """How many replicas of each stage report, by stage and model."""
    report = httpx2.get(f"{url}/v1/accounting", headers=ADMIN, timeout=PATIENCE).json()
    counts: dict[tuple[str, str], int] = {}
    for replica in report["replicas"]:
        key = replica["stage"], replica["model"]
        counts[key] = counts.get(key, 0) + 1
    return counts


def wait_for_replicas(url: str, expected: dict[tuple[str, str], int]) -> None:
    """Return when these and no others report; the ledger forgets a replica some seconds after its end."""
    give_up = time.monotonic() + 60.0
    while (present := replicas(url)) != expected:
        assert time.monotonic() < give_up, present
        time.sleep(0.5)


def images_total(url: str) -> dict[str, float]:
    """The gateway's counter, which would start again with a new gateway."""
    text = httpx2.get(f"{url}/metrics", timeout=PATIENCE).text
    return {
        sample.labels["model"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "safelight_images_total"
    }


def served(url: str) -> list[str]:
    return [model["id"] for model in httpx2.get(f"{url}/v1/models", timeout=PATIENCE).json()["data"]]


@pytest.fixture(params=["split", pytest.param("colocated", marks=pytest.mark.long)])
def url(request: pytest.FixtureRequest, folders: Folders, tmp_path: Path) -> Iterator[str]:
    env = {**os.environ, "SAFELIGHT_ADMIN_KEY": "operator"}
    models, layout = f"tiny,{folders.old}", str(request.param)
    with serving(tmp_path, "--model", models, "--stages", layout, env=env) as service:
        yield service.url


@pytest.mark.timeout(900)
def test_a_model_comes_and_another_goes_while_requests_run(
    url: str, folders: Folders, alone: dict[tuple[str, int], bytes], request: pytest.FixtureRequest
) -> None:
    is_long = request.config.getoption("--long")
    between = 25 if is_long else 2  # answers of each model before and after each change
    with Load(url) as load, ThreadPoolExecutor(5) as threads:
        try:
            running = [threads.submit(load.run, model) for model in ("tiny", "old")]
            load.wait_for(between, "tiny", "old")
            body = {"model": str(folders.new), "default_steps": "3"}
            at_once = [threads.submit(operate, url, "POST", "", **body) for _ in range(2)]
            added, late = sorted((change.result() for change in at_once), key=lambda it: it.status_code)
            assert (added.status_code, added.json().get("id")) == (200, "new"), added.text
            assert (late.status_code, late.json()["error"]["code"]) == (409, "change_under_way"), late.text
            running.append(threads.submit(load.run, "new"))
            load.wait_for(between, "tiny", "old", "new")
            removal_sent = time.monotonic()
            removed = operate(url, "DELETE", "/old")
            removal_done = time.monotonic()
            assert removed.json() == {"id": "old", "object": "model", "deleted": True}
            load.wait_for(between, "tiny", "old", "new")
        finally:
            load.stop()
        for thread in running:
            thread.result()
    check_answers(load.exchanges, alone, removal_sent, removal_done)
    assert len(load.exchanges) >= (200 if is_long else 12)
    assert served(url) == ["tiny", "new"]
    answers = dict.fromkeys(("tiny", "old", "new"), 0)
    for exchange in load.exchanges:
        answers[exchange.model] += exchange.answer.status_code == 200
    assert images_total(url) == answers  # no gateway was restarted
    check_what_is_refused(url, folders)


def check_answers(
    exchanges: list[Exchange], alone: dict[tuple[str, int], bytes], removal_sent: float, removal_done: float
) -> None:
    """Every answer is the image that the model gives alone; `old` is refused from its removal on.

    Args:
        exchanges: All of them.
        alone: The images.
        removal_sent: When the removal was asked for.
        removal_done: When it was done.
    """
    for exchange in exchanges:
        status = exchange.answer.status_code
        if exchange.model == "old" and exchange.ended > removal_sent and status == 404:
            error: dict[str, Any] = exchange.answer.json()["error"]
            assert (error["code"], error["param"]) == ("model_not_found", "model")
            continue
        assert status == 200, exchange.answer.text
        assert exchange.model != "old" or exchange.began < removal_done
        assert exchange.image == alone[exchange.model, exchange.seed]
    assert any(exchange.began > removal_done for exchange in exchanges if exchange.model == "old")


def check_what_is_refused(url: str, folders: Folders) -> None:
    """Changes that cannot be made say why, and the service stays as it is."""
    before = served(url)
    (folders.old / "vae" / "config.json").rename(folders.old / "vae" / "elsewhere.json")
    try:
        for method, path, model, status, text in (
            ("POST", "", str(folders.old), 400, "config.json"),
            ("POST", "", "/nowhere", 400, "neither a folder"),
            ("DELETE", "/old", "", 404, "not served here"),
        ):
            answer = operate(url, method, path, **({"model": model} if model else {}))
            assert (answer.status_code, text in answer.text) == (status, True), answer.text
    finally:
        (folders.old / "vae" / "elsewhere.json").rename(folders.old / "vae" / "config.json")
    assert served(url) == before


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_version_replaces_another_and_stages_live_as_long_as_they_are_used(
    url: str, folders: Folders, alone: dict[tuple[str, int], bytes]
) -> None:
    strange = draw_alone(str(folders.strange), served_name="old")
    with Load(url) as load, ThreadPoolExecutor(2) as threads:
        try:
            running = [threads.submit(load.run, model) for model in ("tiny", "old")]
            load.wait_for(3, "tiny", "old")
            removal_sent = time.monotonic()
            body = {"model": str(folders.strange), "served_name": "old"}
            assert operate(url, "POST", "", **body).status_code == 200
            replaced = time.monotonic()
            load.wait_for(3, "tiny", "old")
        finally:
            load.stop()
        for thread in running:
            thread.result()
    for exchange in load.exchanges:
        assert exchange.answer.status_code == 200, exchange.answer.text
        if exchange.model == "tiny" or exchange.ended < removal_sent:
            assert exchange.image == alone[exchange.model, exchange.seed]
        elif exchange.began > replaced:
            assert exchange.image == strange[exchange.seed]
    assert served(url) == ["tiny", "old"]
    wait_for_replicas(
        url, {("encode", ""): 2, ("denoise", "tiny"): 1, ("denoise", "old"): 1, ("decode", ""): 2}
    )
    assert operate(url, "DELETE", "/old").status_code == 200
    wait_for_replicas(url, {("encode", ""): 1, ("denoise", "tiny"): 1, ("decode", ""): 1})
    last = operate(url, "DELETE", "/tiny")
    assert (last.status_code, "only model" in last.text) == (409, True)
