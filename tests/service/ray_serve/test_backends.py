"""The backends and the ledger's client on Serve's handles, by the methods of the real deployments."""

import asyncio
import pickle
import warnings
from typing import Any

import pytest

from safelight.pipeline.params import PreviewRequest
from safelight.service.errors import StageLost
from safelight.service.messages import (
    NO_CONTEXT,
    DecodeResult,
    ImageFormat,
    PreparedSource,
    Preview,
    RequestContext,
    StageStatus,
    Upload,
)
from safelight.service.usage.events import GatewayReport
from tests.fakes import PREVIEWS, SOURCE, USAGE, make_params

with warnings.catch_warnings():  # Serve warns about pydantic
    warnings.simplefilter("ignore")
    from safelight.service.ray_serve import backends
    from safelight.service.ray_serve.deferred import DeferredResult
    from safelight.service.ray_serve.deployments import (
        ColocatedDeployment,
        DecodeDeployment,
        DenoiseDeployment,
        EncodeDeployment,
        LedgerDeployment,
    )

from tests.service.ray_serve.handles import FakeCall, FakeReference, make_handle

STAGES = ("encode", "denoise", "decode")
IMAGE = DecodeResult(b"image", USAGE)
PARAMS, OUTPUT, CONTEXT = make_params(), ImageFormat("webp", 40), RequestContext("account")
UPLOAD = Upload(b"image", b"mask", (8, 8))


def stage_handles() -> tuple[Any, Any, Any]:
    return make_handle(EncodeDeployment), make_handle(DenoiseDeployment), make_handle(DecodeDeployment)


async def test_each_stage_gets_a_reference_to_the_result_before_it() -> None:
    stages = stage_handles()
    generating = asyncio.ensure_future(backends.SplitBackend(*stages).generate(PARAMS, OUTPUT, CONTEXT))
    await asyncio.sleep(0)
    [encoding], [denoising], [decoding] = (stage.calls for stage in stages)
    assert [call.method for call in (encoding, denoising, decoding)] == ["encode", "generate", "decode"]
    assert encoding.arguments == {"params": PARAMS, "context": CONTEXT}
    # wrapped, so that Serve does not await it (service/ray_serve/deferred.py)
    assert denoising.arguments == {
        "conditioning": DeferredResult(encoding, "encode"),
        "params": PARAMS,
        "context": CONTEXT,
        "source": None,
    }
    assert decoding.arguments == {
        "denoised": DeferredResult(denoising, "denoise"),
        "params": PARAMS,
        "output": OUTPUT,
        "context": CONTEXT,
        "source": None,
    }
    decoding.answer.set_result(IMAGE)
    assert await generating is IMAGE
    assert not any(call.cancelled for call in (encoding, denoising, decoding))


async def test_an_upload_goes_to_the_decoder_and_its_source_to_the_stages_that_use_it() -> None:
    """In one deployment, or in the one that has the autoencoder."""
    source = PreparedSource(SOURCE, DeferredResult("a reference"))
    encoder, denoiser, _ = stage_handles()
    decoder, colocated = make_handle(DecodeDeployment, source), make_handle(ColocatedDeployment, source)
    split = backends.SplitBackend(encoder, denoiser, decoder)
    for backend, stage in ((split, decoder), (backends.ColocatedBackend(colocated), colocated)):
        assert await backend.prepare(UPLOAD, CONTEXT) is source
        [call] = stage.calls
        assert (call.method, call.arguments) == ("prepare", {"upload": UPLOAD, "context": CONTEXT})
        await backend.generate(PARAMS, OUTPUT, CONTEXT, source)
        assert stage.calls[-1].arguments["source"] is source
    assert denoiser.calls[-1].arguments["source"] is source


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_an_upload_is_dropped_with_its_request(how: str) -> None:
    _, _, decoder = stage_handles()
    backend = backends.SplitBackend(*stage_handles()[:2], decoder)
    preparing = asyncio.ensure_future(backend.prepare(UPLOAD, CONTEXT))
    await asyncio.sleep(0)
    [call] = decoder.calls
    await _end(preparing, call, how)
    assert call.cancelled


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_a_cancelled_or_failed_image_is_cancelled_in_every_stage(how: str) -> None:
    stages = stage_handles()
    generating = asyncio.ensure_future(backends.SplitBackend(*stages).generate(PARAMS, OUTPUT))
    await asyncio.sleep(0)
    await _end(generating, stages[-1].calls[0], how)
    assert all(stage.calls[0].cancelled for stage in stages)


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_a_colocated_image_is_one_call_that_is_cancelled_with_it(how: str) -> None:
    handle = make_handle(ColocatedDeployment)
    generating = asyncio.ensure_future(backends.ColocatedBackend(handle).generate(PARAMS, OUTPUT))
    await asyncio.sleep(0)
    [call] = handle.calls
    assert (call.method, call.arguments) == (
        "generate",
        {"params": PARAMS, "output": OUTPUT, "context": NO_CONTEXT, "source": None},
    )
    await _end(generating, call, how)
    assert call.cancelled


async def test_a_colocated_image_is_the_answer_of_its_call() -> None:
    handle = make_handle(ColocatedDeployment, answer=IMAGE)
    assert await backends.ColocatedBackend(handle).generate(PARAMS, OUTPUT, CONTEXT) is IMAGE
    assert handle.calls[0].arguments["context"] == CONTEXT and not handle.calls[0].cancelled


async def settle() -> None:
    """Let every task run until it waits for an answer."""
    for _ in range(20):
        await asyncio.sleep(0)


class Sink:
    """Keeps the previews of an image."""

    request = PreviewRequest(2, first=1)

    def __init__(self) -> None:
        self.previews: list[Preview] = []

    def put(self, preview: Preview) -> None:
        self.previews.append(preview)


async def test_previews_go_from_the_denoiser_to_the_decoder_by_reference() -> None:
    """The gateway reads only the truth values that say what follows."""
    stages, sink = stage_handles(), Sink()
    backend = backends.SplitBackend(*stages)
    generating = asyncio.ensure_future(backend.generate(PARAMS, OUTPUT, CONTEXT, None, sink))
    await settle()
    [encoding], [denoising] = stages[0].calls, stages[1].calls
    assert (denoising.method, denoising.arguments) == (
        "generate_with_previews",
        {
            "conditioning": DeferredResult(encoding, "encode"),
            "params": PARAMS,
            "context": CONTEXT,
            "source": None,
            "previews": sink.request,
        },
    )
    denoising.give(False, "latents 1", False, "latents 2")
    await settle()
    first, second = stages[2].calls
    assert first.arguments == {
        "preview": DeferredResult(FakeReference("latents 1"), "denoise"),
        "output": OUTPUT,
        "context": CONTEXT,
        "source": None,
    }
    second.answer.set_result(PREVIEWS[2])
    await asyncio.to_thread(second.answer.result)
    await settle()
    assert sink.previews == [PREVIEWS[2]]  # although the first preview is not decoded yet
    denoising.give(True, "image", None)
    await settle()
    decoding = stages[2].calls[2]
    assert (decoding.method, decoding.arguments) == (
        "decode",
        {
            "denoised": DeferredResult(FakeReference("image"), "denoise"),
            "params": PARAMS,
            "output": OUTPUT,
            "context": CONTEXT,
            "source": None,
        },
    )
    decoding.answer.set_result(IMAGE)
    result = await generating
    assert (result.image, result.usage.previews) == (b"image", (PREVIEWS[2].cost,))
    assert [call.cancelled for call in stages[2].calls] == [True, False, False]


async def test_a_preview_that_is_dropped_or_fails_does_not_harm_its_image() -> None:
    stages, sink = stage_handles(), Sink()
    generating = asyncio.ensure_future(
        backends.SplitBackend(*stages).generate(PARAMS, OUTPUT, CONTEXT, None, sink)
    )
    await settle()
    stages[1].calls[0].give(False, "latents 1", False, "latents 2", True, "image", None)
    await settle()
    first, second = (call for call in stages[2].calls if call.method == "decode_preview")
    [decoding] = (call for call in stages[2].calls if call.method == "decode")
    first.answer.set_result(None)
    second.answer.set_exception(RuntimeError("the decoder is gone"))
    decoding.answer.set_result(IMAGE)
    assert (await generating).usage == IMAGE.usage
    assert sink.previews == []


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_a_cancelled_or_failed_stream_is_cancelled_in_every_stage(how: str) -> None:
    stages = stage_handles()
    generating = asyncio.ensure_future(
        backends.SplitBackend(*stages).generate(PARAMS, OUTPUT, CONTEXT, None, Sink())
    )
    await settle()
    denoising = stages[1].calls[0]
    denoising.give(False, "latents 1")
    await settle()
    if how == "cancelled":
        generating.cancel()
    else:
        denoising.give(RuntimeError("the replica is gone"))
    with pytest.raises((asyncio.CancelledError, RuntimeError)):
        await generating
    assert all(stage.calls[0].cancelled for stage in stages)


async def test_colocated_previews_are_items_of_one_call() -> None:
    handle, sink = make_handle(ColocatedDeployment), Sink()
    generating = asyncio.ensure_future(
        backends.ColocatedBackend(handle).generate(PARAMS, OUTPUT, CONTEXT, None, sink)
    )
    await settle()
    [call] = handle.calls
    assert (call.method, call.arguments["previews"]) == ("generate_with_previews", sink.request)
    call.give(PREVIEWS[1])
    await settle()
    assert sink.previews == [PREVIEWS[1]]
    call.give(PREVIEWS[2], IMAGE)
    assert await generating is IMAGE
    assert sink.previews == [PREVIEWS[1], PREVIEWS[2]] and not call.cancelled


@pytest.mark.parametrize(("item", "error"), [(None, StageLost), (RuntimeError("x"), RuntimeError)])
async def test_a_colocated_stream_without_an_image_is_lost(
    item: Exception | None, error: type[Exception]
) -> None:
    handle = make_handle(ColocatedDeployment)
    generating = asyncio.ensure_future(
        backends.ColocatedBackend(handle).generate(PARAMS, OUTPUT, CONTEXT, None, Sink())
    )
    await settle()
    handle.calls[0].give(PREVIEWS[0], item)
    with pytest.raises(error):
        await generating


@pytest.mark.parametrize("number", range(3))
async def test_a_loss_says_which_stage_was_lost(number: int) -> None:
    """A stage passes on the loss of an earlier one, and the gateway sees only the last answer."""
    stages = stage_handles()
    generating = asyncio.ensure_future(backends.SplitBackend(*stages).generate(PARAMS, OUTPUT))
    await asyncio.sleep(0)
    calls = [stage.calls[0] for stage in stages]
    error: Exception = StageLost()
    for name, call in list(zip(STAGES, calls, strict=True))[number:-1]:
        call.answer.set_exception(error)
        with pytest.raises(StageLost) as lost:
            await DeferredResult(call, name).value()
        error = pickle.loads(pickle.dumps(lost.value))
    calls[-1].answer.set_exception(error)
    with pytest.raises(StageLost) as final:
        await generating
    assert final.value.stage == STAGES[number]


async def test_the_loss_of_a_colocated_replica_is_that_of_its_denoiser() -> None:
    handle = make_handle(ColocatedDeployment)
    generating = asyncio.ensure_future(backends.ColocatedBackend(handle).generate(PARAMS, OUTPUT))
    await asyncio.sleep(0)
    handle.calls[0].answer.set_exception(StageLost())
    with pytest.raises(StageLost) as lost:
        await generating
    assert lost.value.stage == "denoise"


async def test_the_status_does_not_wait_for_a_stage_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "STATUS_SECONDS", 0.01)
    status = StageStatus(images=2)
    encoder, decoder = make_handle(EncodeDeployment, status), make_handle(DecodeDeployment, status)
    backend = backends.SplitBackend(encoder, make_handle(DenoiseDeployment), decoder)
    assert await backend.status() == {"encode": status, "denoise": None, "decode": status}
    assert [handle.calls[0].method for handle in (encoder, decoder)] == ["status"] * 2
    silent = make_handle(ColocatedDeployment)
    assert await backends.ColocatedBackend(silent).status() == dict.fromkeys(STAGES)
    statuses = {stage: StageStatus(images=k) for k, stage in enumerate(STAGES)}
    assert await backends.ColocatedBackend(make_handle(ColocatedDeployment, statuses)).status() == statuses


async def test_a_stage_that_may_sleep_is_not_woken_by_a_question() -> None:
    status = StageStatus(images=2)
    encoder, denoiser = make_handle(EncodeDeployment, status), make_handle(DenoiseDeployment, status)
    backend = backends.SplitBackend(
        encoder, denoiser, make_handle(DecodeDeployment, status), frozenset({"denoise"})
    )
    assert await backend.status() == {"encode": status, "denoise": None, "decode": status}
    assert denoiser.calls == []
    colocated = make_handle(ColocatedDeployment)
    sleepy = backends.ColocatedBackend(colocated, frozenset(STAGES))
    assert await sleepy.status() == dict.fromkeys(STAGES) and colocated.calls == []


async def test_the_ledgers_client_calls_the_ledgers_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, Any] = {
        "status": {"denoise": StageStatus()},
        "snapshot": "snapshot",
        "report": "report",
    }
    calls: dict[str, dict[str, Any]] = {"report": {"window": 60.0, "latest": 5}, "status": {"model": "m"}}
    for method, answer in answers.items():
        handle = make_handle(LedgerDeployment, answer)
        client, arguments = backends.RemoteLedger(handle), calls.get(method, {})
        result = await getattr(client, method)(*arguments.values())
        assert result == answer
        assert [(call.method, call.arguments) for call in handle.calls] == [(method, arguments)]
    monkeypatch.setattr(backends, "STATUS_SECONDS", 0.01)
    assert await backends.RemoteLedger(make_handle(LedgerDeployment)).status() == dict.fromkeys(STAGES)


def test_a_report_is_delivered_when_the_ledger_has_recorded_it() -> None:
    handle, report = make_handle(LedgerDeployment, answer="recorded"), GatewayReport("gateway", 0, ())
    backends.RemoteLedger(handle).send(report)
    [call] = handle.calls
    assert (call.method, call.arguments) == ("receive", {"report": report})
    assert call.timeouts == [backends.SEND_SECONDS]


async def _end(generating: "asyncio.Future[Any]", call: FakeCall, how: str) -> None:
    if how == "cancelled":
        generating.cancel()
    else:
        call.answer.set_exception(RuntimeError("x"))
    with pytest.raises((asyncio.CancelledError, RuntimeError)):
        await generating
