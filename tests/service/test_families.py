"""A checkpoint folder of every public family, with random weights, is served over HTTP."""

import base64
import io
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.pipeline.assembly.decoder import build_decoder
from safelight.pipeline.assembly.encoder import build_text_encoder
from safelight.pipeline.assembly.engine import build_engine
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.evaluation.renderer import Renderer
from safelight.pipeline.params import GenerationParams
from safelight.service.backend import STAGES
from safelight.service.http.gateway import build_gateway
from safelight.service.http.schemas import ImageRequest
from safelight.service.http.translation import make_params
from safelight.service.inprocess import InProcessPipeline
from safelight.service.messages import (
    NO_CONTEXT,
    DecodeResult,
    ImageFormat,
    PreparedSource,
    Quote,
    RequestContext,
    StageStatus,
    Upload,
)
from safelight.service.previews import PreviewSink
from safelight.service.settings import Settings
from tests.pipeline.engine.test_public_pipelines import FAMILIES
from tests.service.conftest import ROUTE
from tests.service.inprocess_backend import InProcessBackend

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers, which writes the folders: deprecations


@pytest.fixture(scope="module", params=[*FAMILIES])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelInfo:
    folder = tmp_path_factory.mktemp("families") / request.param.replace(" ", "-")
    FAMILIES[request.param](folder)
    return find_model(str(folder))


@pytest.fixture(scope="module")
def client(model: ModelInfo) -> Iterator[TestClient]:
    # as many threads as torch takes by itself, because another number may round differently
    threads = {f"{stage}_threads": torch.get_num_threads() for stage in STAGES}
    settings = Settings(**threads)
    pipeline = InProcessPipeline(model, settings)
    pipeline.wait()
    with TestClient(build_gateway(InProcessBackend(pipeline), model, settings)) as client:
        yield client
    pipeline.close()


@pytest.mark.parametrize("changes", [{}, {"guidance_scale": 1.0}, {"size": "last"}], ids=str)
def test_every_family_draws_the_engines_own_pixels(
    client: TestClient, model: ModelInfo, changes: dict[str, object]
) -> None:
    """Two images of one request over HTTP, and each of them by the engine alone."""
    sizes = client.get("/v1/models").json()["data"][0]["sizes"]
    body: dict[str, Any] = {
        "prompt": "golden retriever" if model.labels else "a red apple",
        "seed": 3,
        "n": 2,
    }
    body |= {"num_inference_steps": 4, **changes}
    if "size" in changes:
        body["size"] = sizes[-1]
    response = client.post(ROUTE, json=body)
    assert response.status_code == 200, response.text
    images = [_pixels(image) for image in _images(response.json())]
    renderer = Renderer(model)
    for image, params in zip(images, make_params(ImageRequest.model_validate(body), model), strict=True):
        [expected] = renderer.render([params])
        assert np.array_equal(image, expected)
    height, width, _ = images[0].shape
    assert f"{width}x{height}" == response.json()["size"] == body.get("size", sizes[0])
    assert not np.array_equal(images[0], images[1])


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
        self,
        params: GenerationParams,
        output: ImageFormat,
        context: RequestContext = NO_CONTEXT,
        source: PreparedSource | None = None,
        previews: PreviewSink | None = None,
    ) -> DecodeResult:
        raise AssertionError(params)

    async def prepare(self, upload: Upload, context: RequestContext = NO_CONTEXT) -> PreparedSource:
        raise AssertionError(upload)

    async def quote(self, params: GenerationParams, context: RequestContext) -> Quote:
        raise AssertionError(params)

    async def status(self) -> Mapping[str, StageStatus | None]:
        return dict.fromkeys(STAGES)


def _images(body: dict[str, Any]) -> list[bytes]:
    return [base64.b64decode(image["b64_json"]) for image in body["data"]]


def _pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)))
