"""The stages and the gateway as Ray Serve deployments: wrappers only, the logic is in the classes they wrap."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.params import GenerationParams
from safelight.service.backend import Backend
from safelight.service.errors import BrokenImage
from safelight.service.http.gateway import build_gateway
from safelight.service.inprocess import make_decode_stage, make_denoise_stage, make_encode_stage
from safelight.service.messages import (
    NO_CONTEXT,
    DecodeResult,
    DenoiseResult,
    EncodeResult,
    ImageFormat,
    RequestContext,
    StageStatus,
)
from safelight.service.ray_serve.backends import RemoteLedger
from safelight.service.ray_serve.deferred import DeferredResult, ReadyResult
from safelight.service.settings import Settings
from safelight.service.stages.decode import DecodeJob, DecodeStage, one_of_batch
from safelight.service.stages.denoise import DenoiseStage
from safelight.service.stages.encode import EncodeJob, EncodeStage
from safelight.service.telemetry.tracing import make_tracing
from safelight.service.usage.events import UsageReport
from safelight.service.usage.ledger import Ledger
from safelight.service.usage.report import AccountingReport, build_report
from safelight.service.usage.reporter import UsageReporter
from safelight.service.usage.stage_snapshot import Snapshot, snapshot

MAX_BATCH = 8  # what is collected; a stage cuts it to what its network takes
BATCH_WAIT_SECONDS = 0.005  # far below a tick; enough for the images of one request to meet


Handle = DeploymentHandle[Any]


class LedgerDeployment:
    """The ledger as a deployment: one replica, asked by all gateways, told by all replicas of the stages."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._ledger = Ledger()

    async def post(self, statement: UsageReport) -> None:
        self._ledger.post(statement)

    async def status(self) -> Mapping[str, StageStatus | None]:
        return self._ledger.status()

    async def snapshot(self) -> Snapshot:
        return snapshot(self._ledger)

    async def report(self, window: float | None, latest: int) -> AccountingReport:
        return build_report(self._ledger, self._settings, window, latest)


class EncodeDeployment:
    """The first stage."""

    def __init__(self, model: ModelInfo, settings: Settings, ledger: Handle):
        self._tracing = make_tracing(settings, "encode")
        self._stage = make_encode_stage(model, settings)
        self._reporter = _reporter(self._stage, ledger)
        self._stage.wait()

    async def encode(self, params: GenerationParams, context: RequestContext = NO_CONTEXT) -> EncodeResult:
        with self._tracing.span("encode", context.traceparent) as span, self._stage.books.jobs(1):
            encoded = await self._encode_batch(EncodeJob(params, context))
            span.set(queue_seconds=encoded.cost.queue_seconds, device_seconds=encoded.cost.device_seconds)
            return encoded

    def __del__(self) -> None:
        _settle(self)

    async def status(self) -> StageStatus:
        return self._stage.status()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve's own question, where there is a range of replicas."""
        return self._stage.books.demand()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def _encode_batch(self, jobs: Sequence[EncodeJob]) -> list[EncodeResult]:
        return await self._stage.encode_batch(jobs)


class DenoiseDeployment:
    """The second stage. Its engine does its own batching, so every image is let in at once."""

    def __init__(self, model: ModelInfo, settings: Settings, ledger: Handle):
        self._tracing = make_tracing(settings, "denoise")
        self._stage = make_denoise_stage(model, settings)
        self._reporter = _reporter(self._stage, ledger)
        self._stage.wait()

    async def generate(
        self,
        conditioning: DeferredResult[EncodeResult] | ReadyResult[EncodeResult],
        params: GenerationParams,
        context: RequestContext = NO_CONTEXT,
    ) -> DenoiseResult:
        states = await conditioning.value()
        with self._tracing.span(
            "denoise", context.traceparent, solver=params.solver, image=params.image_index
        ) as span:
            denoised = await self._stage.generate(states, params, context)
            usage = denoised.denoise
            span.set(
                queue_seconds=usage.cost.queue_seconds,
                device_seconds=usage.cost.device_seconds,
                nfe=usage.nfe,
                rows=usage.rows,
            )
            return denoised

    def __del__(self) -> None:
        _settle(self)

    async def status(self) -> StageStatus:
        return self._stage.status()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve's own question, where there is a range of replicas."""
        return self._stage.books.demand()

    def check_health(self) -> None:
        """Serve's own question; raising asks for another replica."""
        self._stage.check()


class DecodeDeployment:
    """The third stage."""

    def __init__(self, model: ModelInfo, settings: Settings, ledger: Handle):
        self._tracing = make_tracing(settings, "decode")
        self._stage = make_decode_stage(model, settings)
        self._reporter = _reporter(self._stage, ledger)
        self._stage.wait()

    async def decode(
        self,
        denoised: DeferredResult[DenoiseResult] | ReadyResult[DenoiseResult],
        params: GenerationParams,
        output: ImageFormat,
        context: RequestContext = NO_CONTEXT,
    ) -> DecodeResult:
        latents = await denoised.value()
        with (
            self._tracing.span("decode", context.traceparent, format=output.format) as span,
            self._stage.books.jobs(1),
        ):
            drawn = one_of_batch(await self._decode_batch(DecodeJob(latents, params, output, context)))
            span.set(
                queue_seconds=drawn.usage.decode.queue_seconds,
                device_seconds=drawn.usage.decode.device_seconds,
            )
            return drawn

    def __del__(self) -> None:
        _settle(self)

    async def status(self) -> StageStatus:
        return self._stage.status()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve's own question, where there is a range of replicas."""
        return self._stage.books.demand()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def _decode_batch(self, jobs: Sequence[DecodeJob]) -> list[DecodeResult | BrokenImage]:
        return await self._stage.decode_batch(jobs)


class ColocatedDeployment:
    """All three stages in one replica."""

    def __init__(self, model: ModelInfo, settings: Settings, ledger: Handle):
        self._encoder = EncodeDeployment(model, settings, ledger)
        self._denoiser = DenoiseDeployment(model, settings, ledger)
        self._decoder = DecodeDeployment(model, settings, ledger)

    async def generate(
        self, params: GenerationParams, output: ImageFormat, context: RequestContext = NO_CONTEXT
    ) -> DecodeResult:
        conditioning = await self._encoder.encode(params, context)
        denoised = await self._denoiser.generate(ReadyResult(conditioning), params, context)
        return await self._decoder.decode(ReadyResult(denoised), params, output, context)

    def __del__(self) -> None:
        for stage in ("_encoder", "_denoiser", "_decoder"):
            if hasattr(self, stage):
                _settle(getattr(self, stage))

    async def status(self) -> dict[str, StageStatus]:
        return {
            "encode": await self._encoder.status(),
            "denoise": await self._denoiser.status(),
            "decode": await self._decoder.status(),
        }

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The denoiser's, which is nearly all of the work."""
        return self._denoiser.record_autoscaling_stats()

    def check_health(self) -> None:
        self._denoiser.check_health()


class GatewayDeployment:
    """The ingress. The app is built on the replica, because an app with middleware does not travel."""

    def __init__(
        self,
        make_backend: Callable[..., Backend],
        model: ModelInfo,
        settings: Settings,
        ledger: Handle,
        *stages: Handle,
    ):
        self._backend = make_backend(*stages)
        self._ledger = RemoteLedger(ledger)
        self._model = model
        self._settings = settings

    def __serve_build_asgi_app__(self) -> FastAPI:
        self._app = build_gateway(
            self._backend,
            self._model,
            self._settings,
            self._ledger,
            True,
            make_tracing(self._settings, "gateway"),
        )
        return self._app

    async def drain(self) -> None:
        """Refuse what comes from now on; returns when what was let in before is drawn."""
        await self._app.state.dispatcher.drain()


def _reporter(stage: EncodeStage | DenoiseStage | DecodeStage, ledger: Handle) -> UsageReporter:
    """Started before the stage is ready, so that its start is in the books as well."""
    reporter = UsageReporter(
        lambda source, number: stage.books.state(source, number, stage.status()), RemoteLedger(ledger).post
    )
    reporter.start()
    return reporter


def _settle(replica: EncodeDeployment | DenoiseDeployment | DecodeDeployment) -> None:
    """Serve calls `__del__` of a replica that goes: its last charges must not wait for the reporter's next turn."""
    if hasattr(replica, "_reporter"):  # it may go before it is made
        replica._reporter.stop()
