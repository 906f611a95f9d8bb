"""The backend on Serve's handles: calls are chained by reference and cancelled together."""

import asyncio
import warnings
from collections.abc import Generator
from typing import Any, cast

import pytest

from safelight.service.messages import DecodeResult, ImageFormat, RequestContext, StageStatus
from tests.fakes import USAGE, make_params

with warnings.catch_warnings():  # Serve warns about pydantic
    warnings.simplefilter("ignore")
    from ray.serve.handle import DeploymentHandle

    from safelight.service.ray_serve import backends
    from safelight.service.ray_serve.deferred import DeferredResult


class Call:
    """Stands in for Serve's `DeploymentResponse`."""

    def __init__(self, *args: object, result: asyncio.Future[object] | None = None) -> None:
        self.args = args
        self.cancelled = False
        self.result = result or asyncio.get_running_loop().create_future()

    def __await__(self) -> Generator[object, None, object]:
        return self.result.__await__()

    async def _to_object_ref(self) -> "Call":
        return self

    def cancel(self) -> None:
        self.cancelled = True


def split_backend(*stages: "Handle") -> backends.SplitBackend:
    return backends.SplitBackend(*(cast(DeploymentHandle[Any], stage) for stage in stages))


class Handle:
    """Stands in for Serve's `DeploymentHandle`; keeps its calls."""

    def __init__(self, answer: StageStatus | None = None) -> None:
        self.calls: list[Call] = []
        self.answer = answer

    def __getattr__(self, method: str) -> "Handle":
        return self

    def remote(self, *args: object) -> Call:
        self.calls.append(Call(*args))
        if self.answer:
            self.calls[-1].result.set_result(self.answer)
        return self.calls[-1]


async def test_each_stage_gets_a_reference_to_the_result_before_it() -> None:
    stages = Handle(), Handle(), Handle()
    context = RequestContext("account")
    generating = asyncio.ensure_future(split_backend(*stages).generate(make_params(), ImageFormat(), context))
    await asyncio.sleep(0)
    [encoding], [denoising], [decoding] = (stage.calls for stage in stages)
    assert encoding.args == (make_params(), context)
    # wrapped, so that Serve does not await it (service/ray_serve/deferred.py)
    assert denoising.args == (DeferredResult(encoding), make_params(), context)
    assert decoding.args == (DeferredResult(denoising), make_params(), ImageFormat(), context)
    image = DecodeResult(b"image", USAGE)
    decoding.result.set_result(image)
    assert await generating is image
    assert not any(call.cancelled for call in (encoding, denoising, decoding))


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_a_cancelled_or_failed_image_is_cancelled_in_every_stage(how: str) -> None:
    stages = Handle(), Handle(), Handle()
    generating = asyncio.ensure_future(split_backend(*stages).generate(make_params(), ImageFormat()))
    await asyncio.sleep(0)
    if how == "cancelled":
        generating.cancel()
    else:
        stages[-1].calls[0].result.set_exception(RuntimeError("x"))
    with pytest.raises((asyncio.CancelledError, RuntimeError)):
        await generating
    assert all(stage.calls[0].cancelled for stage in stages)


async def test_the_status_does_not_wait_for_a_stage_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backends, "STATUS_SECONDS", 0.01)
    status = StageStatus(images=2)
    backend = split_backend(Handle(status), Handle(), Handle(status))
    assert await backend.status() == {"encode": status, "denoise": None, "decode": status}
    assert await backends.ColocatedBackend(cast(DeploymentHandle[Any], Handle())).status() == dict.fromkeys(
        ("encode", "denoise", "decode")
    )
