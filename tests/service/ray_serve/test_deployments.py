"""The deployments' classes with the tiny model, without Ray: Serve calls nothing but their methods."""

import asyncio
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.params import (
    EditParams,
    GenerationParams,
    PreviewRequest,
    StageCost,
    UsageAmounts,
)
from safelight.service.access import KeyAccess
from safelight.service.database.connection import DatabaseFailed
from safelight.service.inprocess import InProcessPipeline
from safelight.service.keys.api_key import KeySpec
from safelight.service.messages import (
    DecodeResult,
    ImageFormat,
    Preview,
    RequestContext,
    StageStatus,
    Upload,
)
from safelight.service.settings import Settings
from safelight.service.stages.usage_meter import UsageMeter
from safelight.service.telemetry.tracing import Tracing
from safelight.service.usage.events import StageReport, UsageEvent

with warnings.catch_warnings():  # Serve warns about pydantic
    warnings.simplefilter("ignore")
    import ray
    from ray import serve

    from safelight.service.ray_serve.deferred import DeferredResult, ReadyResult
    from safelight.service.ray_serve.deployments import ColocatedDeployment, LedgerDeployment, StageDeployment

from tests.service.http.uploads import mask, png
from tests.service.ray_serve.handles import FakeHandle, make_handle

on_one_loop = pytest.mark.asyncio(loop_scope="module")  # as in a replica: `serve.batch` keeps its loop
MODEL, SETTINGS = find_model("tiny"), Settings(model="tiny", peak_tflops=1.0)
PARAMS = GenerationParams("a red apple", "", 64, 64, 2, 3.0, "euler", seed=5)
OUTPUT, CONTEXT = ImageFormat("webp", 60), RequestContext("record")


@pytest.fixture(scope="module")
def ledger() -> FakeHandle:
    return FakeHandle(LedgerDeployment, answer="recorded")


@pytest.fixture(scope="module")
def deployment(ledger: FakeHandle) -> Iterator[ColocatedDeployment]:
    replica = SimpleNamespace(_deployment_config=SimpleNamespace(max_ongoing_requests=100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "get_replica_context", lambda: replica)  # `serve.batch` asks for its limit
        deployment = ColocatedDeployment(MODEL, SETTINGS, ledger)  # type: ignore[arg-type]
        yield deployment
        deployment.__del__()


def stages(deployment: ColocatedDeployment) -> tuple[Any, Any, Any]:
    return deployment._encoder, deployment._denoiser, deployment._decoder


@on_one_loop
async def test_an_image_is_that_of_the_stages_in_one_process(deployment: ColocatedDeployment) -> None:
    pipeline = InProcessPipeline(MODEL, SETTINGS)
    expected = await pipeline.generate(PARAMS, OUTPUT)
    pipeline.close()
    assert (await deployment.generate(PARAMS, OUTPUT, CONTEXT)).image == expected.image
    encoder, denoiser, decoder = stages(deployment)
    encoded = await encoder.encode(PARAMS, CONTEXT)
    denoised = await denoiser.generate(ReadyResult(encoded), PARAMS, CONTEXT)
    result = await decoder.decode(ReadyResult(denoised), PARAMS, OUTPUT, CONTEXT)
    assert result.image == expected.image
    assert (result.usage.denoise.nfe, result.usage.denoise.rows) == (2, 4)


@on_one_loop
async def test_an_edit_is_that_of_the_stages_in_one_process(
    deployment: ColocatedDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source goes into Ray's object store, and the answer has a reference to it."""
    stored: list[Any] = []

    def put(content: Any) -> Any:
        stored.append(content)
        reference = asyncio.get_running_loop().create_future()
        reference.set_result(content)
        return reference

    monkeypatch.setattr(ray, "put", put)
    params = replace(PARAMS, num_steps=4, edit=EditParams(0.5, is_inpainting=True))
    upload = Upload(png(), png(mask()))
    pipeline = InProcessPipeline(MODEL, SETTINGS)
    [expected] = await pipeline.generate_all([params], OUTPUT, upload)
    pipeline.close()
    source = await deployment.prepare(upload, CONTEXT)
    assert isinstance(source.content, DeferredResult) and len(stored) == 1
    assert source.report.size == (64, 64) and source.report.cost.flops > 0
    result = await deployment.generate(params, OUTPUT, CONTEXT, source)
    assert result.image == expected.image
    assert result.usage.denoise.nfe == 2


@on_one_loop
async def test_a_streamed_image_is_the_same_after_its_previews(deployment: ColocatedDeployment) -> None:
    params = replace(PARAMS, num_steps=8)
    expected = (await deployment.generate(params, OUTPUT, CONTEXT)).image
    items = [
        i async for i in deployment.generate_with_previews(params, OUTPUT, CONTEXT, None, PreviewRequest(2))
    ]
    result = items.pop()
    assert isinstance(result, DecodeResult) and result.image == expected
    assert all(isinstance(item, Preview) for item in items)
    assert result.usage.previews == tuple(item.cost for item in items if isinstance(item, Preview))


@on_one_loop
async def test_a_denoiser_yields_what_each_item_is_before_it(deployment: ColocatedDeployment) -> None:
    params = replace(PARAMS, num_steps=8)
    encoder, denoiser, _ = stages(deployment)
    encoded: Any = ReadyResult(await encoder.encode(params, CONTEXT))
    items = [
        i async for i in denoiser.generate_with_previews(encoded, params, CONTEXT, None, PreviewRequest(2, 1))
    ]
    assert items[::2] == [False, True]
    latents, result = items[1::2]
    assert (latents.index, latents.image_id) == (1, result.image_id)
    plain = await denoiser.generate(encoded, params, CONTEXT)
    assert torch.equal(result.latents, plain.latents)


@on_one_loop
async def test_a_stream_that_is_closed_takes_its_image_out_of_the_batch(
    deployment: ColocatedDeployment,
) -> None:
    endless = replace(PARAMS, num_steps=900)
    stream = deployment.generate_with_previews(endless, OUTPUT, CONTEXT, None, PreviewRequest(3))
    reading = asyncio.ensure_future(anext(stream))
    while not (await deployment.status())["denoise"].running:
        await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait({reading})
    assert (await deployment.status())["denoise"].running == 0


@on_one_loop
async def test_images_of_one_request_are_encoded_and_decoded_in_batches(
    deployment: ColocatedDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[str, int]] = []
    for part in (deployment._encoder, deployment._decoder):
        stage: Any = part._stage

        async def run_batch(jobs: Any, stage: Any = stage, run: Any = stage.run_batch) -> Any:
            sizes.append((stage.meter.stage, len(jobs)))
            return await run(jobs)

        monkeypatch.setattr(stage, "run_batch", run_batch)
    await asyncio.gather(*(deployment.generate(PARAMS, OUTPUT, CONTEXT) for _ in range(3)))
    assert ("encode", 3) in sizes and sum(size for name, size in sizes if name == "decode") == 3


@on_one_loop
async def test_the_status_is_that_of_each_stage(deployment: ColocatedDeployment) -> None:
    await deployment.generate(PARAMS, OUTPUT, CONTEXT)
    status = await deployment.status()
    assert status == {part._stage.meter.stage: part._stage.status() for part in stages(deployment)}
    assert status["encode"].cache_hits > 0 and status["denoise"].ticks > 0 and status["decode"].images > 0
    assert deployment.record_autoscaling_stats().keys() == {"work_left", "offered", "seconds_a_job"}


@on_one_loop
async def test_each_stage_opens_a_span_under_the_requests(
    deployment: ColocatedDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for part in stages(deployment):
        monkeypatch.setattr(part, "_tracing", Tracing(provider.get_tracer("test")))
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"  # W3C's own example
    result = await deployment.generate(PARAMS, OUTPUT, RequestContext("record", f"00-{trace}-{parent}-01"))
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["encode", "denoise", "decode"]
    for span, cost in zip(spans, result.usage.stages.values(), strict=True):
        assert span.parent is not None and span.attributes is not None
        assert (f"{span.parent.trace_id:032x}", f"{span.parent.span_id:016x}") == (trace, parent)
        assert span.attributes["safelight.queue_seconds"] == cost.queue_seconds
        assert span.attributes["safelight.device_seconds"] == cost.device_seconds
    assert spans[1].attributes is not None and spans[2].attributes is not None
    assert (spans[1].attributes["safelight.nfe"], spans[1].attributes["safelight.rows"]) == (2, 4)
    assert spans[2].attributes["safelight.format"] == "webp"


@on_one_loop
async def test_every_image_is_reported_to_the_ledger(
    deployment: ColocatedDeployment, ledger: FakeHandle
) -> None:
    context = RequestContext("reported")
    await deployment.generate(PARAMS, OUTPUT, context)
    for part in stages(deployment):
        assert part._reporter.deliver()
    reports: list[StageReport] = [call.arguments["report"] for call in ledger.calls]
    assert {call.method for call in ledger.calls} == {"receive"}
    charged = [report.stage for report in reports for event in report.events if event.record_id == "reported"]
    assert sorted(charged) == ["decode", "denoise", "encode"]  # each once


def test_a_denoiser_without_an_engine_is_unhealthy(deployment: ColocatedDeployment) -> None:
    """Serve then replaces the replica. This ends the engine, so it is the last test."""
    deployment.check_health()
    deployment._denoiser.check_health()
    deployment._denoiser._stage.close()
    for part in (deployment, deployment._denoiser):
        with pytest.raises(Exception, match="was stopped"):
            part.check_health()


class StoppedStage:
    """A stage without a network."""

    def __init__(self) -> None:
        self.meter = UsageMeter("encode")

    def wait(self) -> None:
        pass

    def status(self) -> StageStatus:
        return StageStatus()


def test_a_replica_that_ends_delivers_its_last_events() -> None:
    """Serve calls `__del__`, also of a replica whose stage could not be made."""
    ledger = make_handle(LedgerDeployment, answer="recorded")
    stopped: StageDeployment[Any] = StageDeployment("encode", StoppedStage, SETTINGS, ledger)
    stopped._stage.meter.record_usage(CONTEXT, StageCost(0.5, 7))
    stopped.__del__()
    events = [event for call in ledger.calls for event in call.arguments["report"].events]
    assert events == [UsageEvent("record", UsageAmounts(device_seconds=0.5, flops=7))]
    assert not stopped._reporter.is_alive()
    StageDeployment.__new__(StageDeployment).__del__()


async def test_the_ledger_makes_the_tables(tmp_path: Path) -> None:
    settings = Settings(require_api_keys="always", database=str(tmp_path))
    LedgerDeployment(settings)
    access = KeyAccess(settings)
    assert access.source is not None
    while True:  # gateways wait for the tables, too
        try:
            await access.source.keys.create(KeySpec("alice"))
            break
        except DatabaseFailed:
            await asyncio.sleep(0.05)
    await access.database.close()  # type: ignore[union-attr]
