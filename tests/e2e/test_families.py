"""A checkpoint folder of every public family is served by three deployments."""

import base64
import io
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from tests.live import serving
from tests.pipeline.engine.test_public_pipelines import FAMILIES
from tests.service.conftest import ROUTE

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers, which writes the folders: deprecations


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_served_by_three_deployments(name: str, tmp_path: Path) -> None:
    FAMILIES[name](tmp_path / "model")
    prompt = "207" if name == "dit" else "a red apple"
    with serving(tmp_path, "--model", str(tmp_path / "model"), "--stages", "split") as service:
        response = httpx2.post(
            service.url + ROUTE, json={"prompt": prompt, "num_inference_steps": 4}, timeout=120
        )
    assert response.status_code == 200, response.text
    assert Image.open(io.BytesIO(base64.b64decode(response.json()["data"][0]["b64_json"]))).size == (64, 64)
