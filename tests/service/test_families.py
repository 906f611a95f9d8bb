"""A folder of every public family, of random weights, draws over HTTP through the three stages."""

import base64
import io
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest
from PIL import Image
from starlette.testclient import TestClient

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_engine
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.params import GenerationParams
from safelight.service.backend import STAGES
from safelight.service.http.gateway import build_gateway
from safelight.service.inprocess import InProcessPipeline
from safelight.service.messages import NO_CONTEXT, DecodeResult, ImageFormat, RequestContext, StageStatus
from safelight.service.settings import Settings
from tests.live import serving
from tests.pipeline.engine.test_public_pipelines import FAMILIES

pytestmark = pytest.mark.filterwarnings(
    "ignore"
)  # diffusers, which writes the folders, talks of its own future

ROUTE = "/v1/images/generations"


class StudioBackend:
    """The three stages themselves, without Ray between them."""

    def __init__(self, pipeline: InProcessPipeline):
        self._studio = pipeline

    async def generate(
        self, params: GenerationParams, output: ImageFormat, context: RequestContext = NO_CONTEXT
    ) -> DecodeResult:
        return await self._studio.draw(params, output, context)

    async def status(self) -> Mapping[str, StageStatus | None]:
        stages = (self._studio.encoder, self._studio.denoiser, self._studio.decoder)
        return dict(zip(STAGES, (stage.status() for stage in stages), strict=True))


@pytest.fixture(params=[*FAMILIES])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TestClient]:
    FAMILIES[request.param](tmp_path / request.param.replace(" ", "-"))
    model = find_model(str(tmp_path / request.param.replace(" ", "-")))
    pipeline = InProcessPipeline(model, Settings())
    pipeline.wait()
    with TestClient(build_gateway(StudioBackend(pipeline), model, Settings())) as client:
        yield client
    pipeline.close()


def test_every_family_draws(client: TestClient) -> None:
    told = client.get("/v1/models").json()["data"][0]
    prompt = "golden retriever" if told["id"] == "dit" else "a red apple"
    body = {"prompt": prompt, "seed": 3, "n": 2, "num_inference_steps": 4}
    answers = [
        client.post(ROUTE, json=body | changed)
        for changed in ({}, {}, {"guidance_scale": 1.0}, {"size": told["sizes"][-1]})
    ]
    assert [answer.status_code for answer in answers] == [200] * 4, [answer.text for answer in answers]
    first, again, unguided, other = (answer.json() for answer in answers)
    assert _images(first) == _images(again)
    assert len({*_images(first), *_images(unguided)}) == 4
    width, height = Image.open(io.BytesIO(_images(other)[0])).size
    assert f"{width}x{height}" == told["sizes"][-1]


def test_every_family_becomes_ready_by_a_warm_up_image(client: TestClient) -> None:
    for _ in range(600):
        answer = client.get("/readyz")
        if answer.status_code == 200:
            break
        time.sleep(0.1)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("build", "own"),
    [(build_text_encoder, "text_encoder"), (build_engine, "transformer"), (build_decoder, "vae")],
    ids=["encode", "denoise", "decode"],
)
def test_a_stage_reads_no_weights_but_its_own(
    tmp_path: Path, name: str, build: Callable[[ModelInfo], object], own: str
) -> None:
    FAMILIES[name](tmp_path)
    for file in tmp_path.glob("*/*.safetensors"):
        if not file.parent.name.startswith(own):
            file.write_bytes(b"not weights")
    build(find_model(str(tmp_path)))
    for file in tmp_path.glob(f"{own}*/*.safetensors"):
        file.write_bytes(b"not weights")
    if list(tmp_path.glob(f"{own}*/*.safetensors")):
        with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
            build(find_model(str(tmp_path)))


def test_a_prompt_that_is_no_class_is_refused_by_name(tmp_path: Path) -> None:
    FAMILIES["dit"](tmp_path)
    with TestClient(build_gateway(NoBackend(), find_model(str(tmp_path)), Settings())) as client:
        answer = client.post(ROUTE, json={"prompt": "golden retreiver"})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "prompt"
        assert "golden retriever" in answer.json()["error"]["message"]


class NoBackend:
    """For requests that must not get this far."""

    async def generate(
        self, params: GenerationParams, output: ImageFormat, context: RequestContext = NO_CONTEXT
    ) -> DecodeResult:
        raise AssertionError(params)

    async def status(self) -> Mapping[str, StageStatus | None]:
        return dict.fromkeys(STAGES)


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_draws_as_three_deployments(name: str, tmp_path: Path) -> None:
    FAMILIES[name](tmp_path / "model")
    prompt = "207" if name == "dit" else "a red apple"
    with serving(tmp_path, "--model", str(tmp_path / "model"), "--stages", "split") as service:
        answer = httpx.post(
            service.url + ROUTE, json={"prompt": prompt, "num_inference_steps": 4}, timeout=120
        )
    assert answer.status_code == 200, answer.text
    assert Image.open(io.BytesIO(_images(answer.json())[0])).size == (64, 64)


def _images(answer: dict) -> list[bytes]:
    return [base64.b64decode(image["b64_json"]) for image in answer["data"]]
