"""No log line of any level holds a key, a signature or a text of a caller's, in any case."""

import base64
import logging
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

from safelight.service.errors import StageFailed
from safelight.service.http.gateway import build_gateway
from safelight.service.telemetry.logs import JsonFormatter, TextFormatter
from tests.fakes import MODEL, FakeBackend
from tests.service.conftest import ROUTE
from tests.service.http.keyed import ADMIN_KEY, METRICS_KEY, make_keys, make_settings
from tests.service.http.uploads import data_url, photo, png

PROMPT = "a very private zorbel"


def test_keys_signatures_and_prompts_are_in_no_log_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = make_keys(tmp_path)
    words = tmp_path / "words.txt"
    words.write_text("gr0bnik\n", encoding="utf-8")
    settings = make_settings(
        tmp_path, denied_words_file=str(words), image_store=str(tmp_path), link_key="k" * 16 + "secret" * 4
    )
    backend = FakeBackend()
    client = TestClient(build_gateway(backend, MODEL, settings))
    alice = {"authorization": f"Bearer {keys.secrets['alice']}"}
    admin = {"authorization": f"Bearer {ADMIN_KEY}"}
    caplog.set_level(logging.DEBUG, "safelight")

    body = {"prompt": PROMPT, "negative_prompt": PROMPT, "user": PROMPT}
    link = client.post(ROUTE, json=body | {"response_format": "url"}, headers=alice).json()["data"][0]["url"]
    parts = urlsplit(link)
    assert client.get(f"{parts.path}?{parts.query}").status_code == 200
    assert client.get(f"{parts.path}?{parts.query}x").status_code in (400, 403)
    statuses = [
        client.post(ROUTE, json=body, headers={"authorization": "Bearer wrong" + PROMPT}).status_code,
        client.post(ROUTE, json=body, headers={"x-api-key": keys.secrets["alice"]}).status_code,
        client.post(f"{ROUTE}?api_key={keys.secrets['alice']}", json=body).status_code,
        client.post(ROUTE, json=body | {"prompt": f"{PROMPT} gr0bnik"}, headers=alice).status_code,
        client.post(ROUTE, json=body | {"prompt": PROMPT * 5000}, headers=alice).status_code,
        client.post(ROUTE, json=body | {"prompt": [PROMPT]}, headers=alice).status_code,
        client.post(
            "/v1/images/edits", json=body | {"image": data_url(png(photo()))}, headers=alice
        ).status_code,
        client.get("/metrics", headers={"authorization": f"Bearer {METRICS_KEY}"}).status_code,
        client.get("/v1/accounting", headers=admin).status_code,
    ]
    assert statuses == [401, 401, 401, 400, 400, 400, 200, 200, 200]
    made = client.post("/v1/admin/keys", json={"name": "bob"}, headers=admin)
    assert made.status_code in (200, 201), made.text
    backend.errors = [StageFailed(), RuntimeError("the device is on fire")]
    assert {client.post(ROUTE, json=body, headers=alice).status_code for _ in range(2)} == {503}

    records = [record for record in caplog.records if not record.name.startswith("httpx")]  # the client
    lines = [f.format(record) for record in records for f in (TextFormatter(), JsonFormatter())]
    assert any("the device is on fire" in line for line in lines)
    secrets = [
        *keys.secrets.values(),
        ADMIN_KEY,
        METRICS_KEY,
        settings.link_key.get_secret_value(),
        str(made.json().get("secret") or made.json().get("key")),
        PROMPT,
        base64.b64encode(PROMPT.encode()).decode()[:12],
        parts.query.split("signature=")[1],
        "gr0bnik",
    ]
    assert [(secret[:8], line[:300]) for secret in secrets for line in lines if secret in line] == []
