"""The stages and the gateway as Ray Serve deployments: wrappers only, the logic is in the classes they wrap."""

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from pipeline.params import GenerationParams, ModelInfo
from service.backend import Backend
from service.errors import BrokenPicture
from service.gateway import build_gateway
from service.payloads import Conditioning, Denoised, Drawn, Output, StageCensus
from service.settings import Settings
from service.stages.decode import DecodeJob, one_of_batch
from service.stages.encode import EncodeJob
from service.studio import draw, make_decode_stage, make_denoise_stage, make_encode_stage

MAX_BATCH = 8  # what is collected; a stage cuts it to what its network takes
BATCH_WAIT_SECONDS = 0.005  # far below a tick; enough for the pictures of one request to meet


class TextEncoder:
    """The first stage."""

    def __init__(self, model: ModelInfo, settings: Settings):
        self._stage = make_encode_stage(model, settings)
        self._stage.wait()

    async def encode(self, params: GenerationParams) -> Conditioning:
        return await self._encode_batch(EncodeJob(params))

    async def census(self) -> StageCensus:
        return self._stage.census()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def _encode_batch(self, jobs: Sequence[EncodeJob]) -> list[Conditioning]:
        return await self._stage.encode_batch(jobs)


class Denoiser:
    """The second stage. Its engine does its own batching, so every picture is let in at once."""

    def __init__(self, model: ModelInfo, settings: Settings):
        self._stage = make_denoise_stage(model, settings)
        self._stage.wait()

    async def generate(self, conditioning: Conditioning, params: GenerationParams) -> Denoised:
        return await self._stage.generate(conditioning, params)

    async def census(self) -> StageCensus:
        return self._stage.census()

    def check_health(self) -> None:
        """Serve's own question; raising asks for another replica."""
        self._stage.check()


class VaeDecoder:
    """The third stage."""

    def __init__(self, model: ModelInfo, settings: Settings):
        self._stage = make_decode_stage(model, settings)
        self._stage.wait()

    async def decode(self, denoised: Denoised, params: GenerationParams, output: Output) -> Drawn:
        return one_of_batch(await self._decode_batch(DecodeJob(denoised, params, output)))

    async def census(self) -> StageCensus:
        return self._stage.census()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def _decode_batch(self, jobs: Sequence[DecodeJob]) -> list[Drawn | BrokenPicture]:
        return await self._stage.decode_batch(jobs)


class Colocated:
    """All three stages in one replica."""

    def __init__(self, model: ModelInfo, settings: Settings):
        self._encoder = TextEncoder(model, settings)
        self._denoiser = Denoiser(model, settings)
        self._decoder = VaeDecoder(model, settings)

    async def draw(self, params: GenerationParams, output: Output) -> Drawn:
        return await draw(self._encoder, self._denoiser, self._decoder, params, output)

    async def census(self) -> dict[str, StageCensus]:
        return {
            "encode": await self._encoder.census(),
            "denoise": await self._denoiser.census(),
            "decode": await self._decoder.census(),
        }

    def check_health(self) -> None:
        self._denoiser.check_health()


class Gateway:
    """The ingress. The app is built on the replica, because an app with middleware does not travel."""

    def __init__(self, make_backend: Callable[..., Backend], model: ModelInfo, settings: Settings, *stages: DeploymentHandle[Any]):
        self._backend = make_backend(*stages)
        self._model = model
        self._settings = settings

    def __serve_build_asgi_app__(self) -> FastAPI:
        self._app = build_gateway(self._backend, self._model, self._settings, proxied=True)
        return self._app

    async def drain(self) -> None:
        """Refuse what comes from now on; returns when what was let in before is drawn."""
        await self._app.state.painter.drain()
