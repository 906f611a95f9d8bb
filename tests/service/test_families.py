"""A checkpoint folder of every public family, with random weights, is served over HTTP."""

import base64
import io
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
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
from tests.service.conftest import ROUTE
from tests.service.inprocess_backend import InProcessBackend

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers, which writes the folders: deprecations


@pytest.fixture(params=[*FAMILIES])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TestClient]:
    FAMILIES[request.param](tmp_path / request.param.replace(" ", "-"))
    model = find_model(str(tmp_path / request.param.replace(" ", "-")))
    pipeline = InProcessPipeline(model, Settings())
    pipeline.wait()
    with TestClient(build_gateway(InProcessBackend(pipeline), model, Settings())) as client:
        yield client
    pipeline.close()


def test_every_family_draws(client: TestClient) -> None:
    model = client.get("/v1/models").json()["data"][0]
    prompt = "golden retriever" if model["id"] == "dit" else "a red apple"
    body = {"prompt": prompt, "seed": 3, "n": 2, "num_inference_steps": 4}
    responses = [
        client.post(ROUTE, json=body | changes)
        for changes in ({}, {}, {"guidance_scale": 1.0}, {"size": model["sizes"][-1]})
    ]
    assert [response.status_code for response in responses] == [200] * 4, [r.text for r in responses]
    first, repeated, unguided, resized = (response.json() for response in responses)
    assert _images(first) == _images(repeated)
    assert len({*_images(first), *_images(unguided)}) == 4
    width, height = Image.open(io.BytesIO(_images(resized)[0])).size
    assert f"{width}x{height}" == model["sizes"][-1]


def test_every_family_becomes_ready_by_a_warm_up_image(client: TestClient) -> None:
    for _ in range(600):
        response = client.get("/readyz")
        if response.status_code == 200:
            break
        time.sleep(0.1)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("build", "part"),
    [(build_text_encoder, "text_encoder"), (build_engine, "transformer"), (build_decoder, "vae")],
    ids=["encode", "denoise", "decode"],
)
def test_a_stage_reads_only_the_weights_of_its_part(
    tmp_path: Path, name: str, build: Callable[[ModelInfo], object], part: str
) -> None:
    FAMILIES[name](tmp_path)
    for file in tmp_path.glob("*/*.safetensors"):
        if not file.parent.name.startswith(part):
            file.write_bytes(b"not weights")
    build(find_model(str(tmp_path)))
    for file in tmp_path.glob(f"{part}*/*.safetensors"):
        file.write_bytes(b"not weights")
    if list(tmp_path.glob(f"{part}*/*.safetensors")):
        with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
            build(find_model(str(tmp_path)))


def test_a_prompt_that_is_no_class_is_refused_with_the_nearest_class(tmp_path: Path) -> None:
    FAMILIES["dit"](tmp_path)
    with TestClient(build_gateway(UnreachableBackend(), find_model(str(tmp_path)), Settings())) as client:
        response = client.post(ROUTE, json={"prompt": "golden retreiver"})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "prompt"
        assert "golden retriever" in response.json()["error"]["message"]


class UnreachableBackend:
    """A `Backend` for requests that must be refused before they reach it."""

    async def generate(
        self, params: GenerationParams, output: ImageFormat, context: RequestContext = NO_CONTEXT
    ) -> DecodeResult:
        raise AssertionError(params)

    async def status(self) -> Mapping[str, StageStatus | None]:
        return dict.fromkeys(STAGES)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_served_by_three_deployments(name: str, tmp_path: Path) -> None:
    FAMILIES[name](tmp_path / "model")
    prompt = "207" if name == "dit" else "a red apple"
    with serving(tmp_path, "--model", str(tmp_path / "model"), "--stages", "split") as service:
        response = httpx2.post(
            service.url + ROUTE, json={"prompt": prompt, "num_inference_steps": 4}, timeout=120
        )
    assert response.status_code == 200, response.text
    assert Image.open(io.BytesIO(_images(response.json())[0])).size == (64, 64)


def _images(body: dict[str, Any]) -> list[bytes]:
    return [base64.b64decode(image["b64_json"]) for image in body["data"]]
