"""The service on this machine's device: one image over HTTP, without Ray."""

import base64
import io

import httpx2
import numpy as np
import torch
from PIL import Image

from tests.clients.service import drawing_service


def test_an_image_comes_over_http(cuda: torch.device) -> None:
    """And the same request gives the same bytes again."""
    request = {"prompt": "a red apple", "seed": 7, "num_inference_steps": 4}
    files = []
    with drawing_service() as url:
        for _ in range(2):
            response = httpx2.post(f"{url}/v1/images/generations", json=request, timeout=300.0)
            assert response.status_code == 200, response.text
            files.append(base64.b64decode(response.json()["data"][0]["b64_json"]))
    with Image.open(io.BytesIO(files[0])) as image:
        assert image.size == (128, 128)
        assert np.asarray(image.convert("RGB")).std() > 5.0  # not of one colour
    assert files[0] == files[1]
