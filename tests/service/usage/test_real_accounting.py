"""What real stages of the tiny model report: to the client, to Prometheus and to the ledger, the same."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.engine import previews
from safelight.pipeline.engine.image_decoder import ImageDecoder, InvalidImage
from safelight.service.http.gateway import build_gateway
from safelight.service.inprocess import InProcessPipeline
from safelight.service.settings import Settings
from safelight.service.usage.client import LocalLedger
from tests.service.conftest import ROUTE
from tests.service.http.uploads import data_url, mask, png
from tests.service.inprocess_backend import InProcessBackend

SETTINGS = Settings(model="tiny", peak_tflops=1.0)
BODY = {"prompt": "a red apple", "negative_prompt": "blue", "n": 2, "num_inference_steps": 3, "seed": 1}
STAGES = ("encode", "denoise", "decode")


class Service:
    """A gateway over real stages in this process, whose reports go to the gateway's ledger."""

    def __init__(self, pipeline: InProcessPipeline) -> None:
        self._pipeline = pipeline
        self._ledger = LocalLedger(SETTINGS)
        app = build_gateway(InProcessBackend(pipeline), find_model("tiny"), SETTINGS, self._ledger)
        self._app = app
        self.client = TestClient(app)  # without lifespan: no warm-up image
        self._reports = 0

    def accounting(self) -> dict[str, Any]:
        """The accounting report after every stage has reported."""
        for stage in self._pipeline.stages:
            meter = stage.meter
            self._ledger.send(meter.collect_report(meter.stage, self._reports, stage.status()))
        self._reports += 1
        report: dict[str, Any] = self.client.get("/v1/accounting", params={"latest": 5}).json()
        return report

    def draw(self, *bodies: dict[str, Any]) -> list[dict[str, Any]]:
        """What the answers to `bodies`, all drawn at once, say that it cost: each, or each streamed image."""

        async def draw_all() -> list[httpx2.Response]:
            transport = httpx2.ASGITransport(app=self._app)
            async with httpx2.AsyncClient(transport=transport, base_url="http://test", timeout=120) as client:
                routes = ["/v1/images/edits" if "image" in body else ROUTE for body in bodies]
                calls = (client.post(route, json=body) for route, body in zip(routes, bodies, strict=True))
                return list(await asyncio.gather(*calls))

        return [cost for response in asyncio.run(draw_all()) for cost in _costs_of(response)]

    def metrics(self) -> dict[str, float]:
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        return {  # of one model
            " ".join(
                (sample.name, *(value for label, value in sample.labels.items() if label != "model"))
            ): sample.value
            for family in families
            for sample in family.samples
        }


def _costs_of(response: httpx2.Response) -> list[dict[str, Any]]:
    """What an answer says that it cost: once, or for each image of a stream."""
    assert response.status_code == 200, response.text
    if response.headers["content-type"] == "application/json":
        return [response.json()["usage"]["safelight"]]
    lines = [line for line in response.text.split("\n") if line.startswith("data: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    return [event["usage"]["safelight"] for event in events if event["type"].endswith("completed")]


@pytest.fixture(autouse=True)
def generous_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model denoises faster than it decodes, so that its previews would be dropped."""
    for name in ("ALONE_SHARE", "SHARED_SHARE"):
        monkeypatch.setattr(previews, name, 1000.0)


@pytest.fixture
def service() -> Iterator[Service]:
    pipeline = InProcessPipeline(find_model("tiny"), SETTINGS)
    pipeline.wait()
    yield Service(pipeline)
    pipeline.close()


def test_previews_are_charged_alike_everywhere(service: Service) -> None:
    """What the events of a stream say is what metrics and ledger have, previews included."""
    body = BODY | {"num_inference_steps": 9, "stream": True, "partial_images": 2}
    costs = service.draw(body)
    accounting, metrics = service.accounting(), service.metrics()
    assert len(costs) == accounting["images"] == metrics["safelight_images_total"] == 2
    assert accounting["requests"]["done"] == 1
    num_previews = sum(cost["previews"] for cost in costs)
    assert 0 < num_previews == metrics["safelight_stage_previews decode"]
    for stage in STAGES:
        seconds = sum(cost["device_seconds"][stage] for cost in costs)
        assert accounting["device_seconds"][stage] == pytest.approx(seconds)
        assert metrics[f"safelight_image_device_seconds_total {stage}"] == pytest.approx(seconds)
    assert accounting["flops"] == sum(cost["flops"] for cost in costs)
    balance = accounting["balance"]["stages"]["decode"]
    assert balance["requests"] <= balance["busy"]


def test_client_metrics_and_ledger_agree(service: Service) -> None:
    responses = [service.client.post(ROUTE, json=BODY | {"seed": seed}) for seed in (1, 2)]
    costs = [response.json()["usage"]["safelight"] for response in responses]
    accounting, metrics = service.accounting(), service.metrics()

    def total(name: str) -> float:
        return sum(float(cost[name]) for cost in costs)

    assert (total("nfe"), total("rows")) == (12, 24)  # 4 images of 3 steps, under guidance
    for name in ("nfe", "rows"):
        assert accounting[name] == metrics[f"safelight_image_{name}_total"] == total(name)
    assert accounting["tokens"] == metrics["safelight_image_tokens_total"] == 24 * 16
    assert accounting["images"] == metrics["safelight_images_total"] == 4
    flops = {stage: metrics[f"safelight_image_flops_total {stage}"] for stage in STAGES}
    [account] = accounting["accounts"]
    assert {stage: account["stages"][stage]["flops"] for stage in STAGES} == flops
    assert accounting["flops"] == total("flops") == sum(flops.values())
    for stage in STAGES:
        seconds = metrics[f"safelight_image_device_seconds_total {stage}"]
        assert accounting["device_seconds"][stage] == pytest.approx(seconds)
        assert seconds == pytest.approx(sum(cost["device_seconds"][stage] for cost in costs))
        assert metrics[f"safelight_stage_attributed_seconds_total {stage}"] == pytest.approx(seconds)
    waited = sum(account["stages"][stage]["queue_seconds"] for stage in STAGES)
    assert waited == pytest.approx(metrics["safelight_image_queue_seconds_sum"])
    assert waited == pytest.approx(total("queue_seconds"))
    # each of the two texts is encoded once; three of the four images find both in the cache
    assert metrics["safelight_stage_cache_misses encode"] == 2
    assert metrics["safelight_stage_cache_hits encode"] == 6
    assert metrics["safelight_stage_rows denoise"] == 24


def test_edits_are_charged_with_their_uploads_also_refused_ones(service: Service) -> None:
    """The source's seconds are busy seconds of the stage that decodes, of which the ledger knows whose."""
    edit = BODY | {"image": data_url(png()), "strength": 0.5}
    cost = service.client.post("/v1/images/edits", json=edit).json()["usage"]["safelight"]
    assert (cost["nfe"], cost["rows"]) == (4, 8)  # 2 images of 2 of the 3 steps, under guidance
    refused = service.client.post("/v1/images/edits", json=BODY | {"image": data_url(b"no image")})
    assert refused.status_code == 400
    accounting, metrics = service.accounting(), service.metrics()
    [of_refused, of_edit] = [entry["stages"]["decode"] for entry in accounting["latest"]]
    assert of_edit["device_seconds"] == pytest.approx(cost["device_seconds"]["decode"])
    assert of_edit["device_seconds"] > cost["edit"]["device_seconds"] > 0.0
    assert of_edit["flops"] == metrics["safelight_image_flops_total decode"]
    assert of_refused["device_seconds"] > 0.0
    balance = accounting["balance"]["stages"]["decode"]
    assert balance["requests"] == pytest.approx(of_edit["device_seconds"] + of_refused["device_seconds"])
    assert balance["busy"] >= balance["requests"] + balance["starting"]


def test_requests_of_all_kinds_at_once_add_up(service: Service) -> None:
    """Generations, streams, edits, inpaintings and links: what each was charged is what the ledger has."""
    source, whole_mask = data_url(png()), data_url(png(mask()))
    stream = {"stream": True, "partial_images": 3, "num_inference_steps": 90}
    bodies: list[dict[str, Any]] = [
        BODY,
        BODY | stream,
        BODY | {"image": source, "strength": 0.5},
        BODY | {"image": source, "mask": whole_mask} | stream,
        BODY | {"response_format": "url", "output_format": "webp"},
        BODY | {"image": source, "response_format": "url"},
    ]
    costs = service.draw(*bodies)
    accounting, metrics = service.accounting(), service.metrics()
    assert accounting["requests"]["done"] == len(bodies) and accounting["images"] == 2 * len(bodies)
    for name in ("nfe", "rows"):
        assert accounting[name] == sum(cost[name] for cost in costs)
    assert 0 < sum(cost["previews"] for cost in costs) <= metrics["safelight_stage_previews decode"]
    for name in ("store_seconds", "stored_bytes"):
        assert accounting[name] == pytest.approx(sum(cost[name] for cost in costs)) and accounting[name] > 0
    are_previews_whole = sum(cost["previews"] for cost in costs) == metrics["safelight_stage_previews decode"]
    for stage in STAGES:
        seconds = sum(cost["device_seconds"][stage] for cost in costs)
        balance = accounting["balance"]["stages"][stage]
        assert balance["requests"] == pytest.approx(accounting["device_seconds"][stage])
        assert balance["busy"] >= balance["requests"] + balance["starting"]
        if stage != "decode" or are_previews_whole:  # a preview that came too late is in the ledger alone
            assert accounting["device_seconds"][stage] == pytest.approx(seconds)
        assert accounting["device_seconds"][stage] >= seconds - 1e-9


def test_an_image_that_cannot_be_decoded_is_charged_once_where_it_was_made(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text was encoded and the image denoised; the decoder made nothing, so it is charged nothing."""
    expected = service.client.post(ROUTE, json=BODY | {"n": 1}).json()["usage"]["safelight"]
    before = service.accounting()

    def decode_nothing(decoder: ImageDecoder, latents: list[object]) -> list[InvalidImage]:
        return [InvalidImage("no numbers") for _ in latents]

    monkeypatch.setattr(ImageDecoder, "decode", decode_nothing)
    body = BODY | {"n": 1, "prompt": "a green pear"}
    response = service.client.post(ROUTE, json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "broken_picture")
    after = service.accounting()
    assert after["requests"] == {"done": 1, "refused": 0, "aborted": 0, "failed": 1}
    assert after["images"] == before["images"] == 1
    assert (after["nfe"], after["rows"]) == (2 * expected["nfe"], 2 * expected["rows"])
    [failed, _] = after["latest"]
    assert (failed["outcome"], failed["images"]) == ("failed", 0)
    assert (failed["stages"]["denoise"]["nfe"], failed["stages"]["denoise"]["rows"]) == (3, 6)
    [account] = after["accounts"]
    first_text = before["accounts"][0]["stages"]["encode"]["flops"] // 2
    assert failed["stages"]["encode"]["flops"] == first_text  # its prompt; "blue" was in the cache
    assert account["stages"]["encode"]["flops"] == 3 * first_text
    assert failed["stages"]["decode"] == dict.fromkeys(failed["stages"]["decode"], 0)
