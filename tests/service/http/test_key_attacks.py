"""Attacks on the keys of a service, each answered as the table in docs/keys.md says."""

import asyncio
import base64
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI

from safelight.service.http.gateway import build_gateway
from safelight.service.keys.secrets import make_secret
from tests.fakes import MODEL, FakeBackend
from tests.service.asgi import AsgiClient
from tests.service.conftest import ROUTE
from tests.service.http.keyed import ADMIN_KEY, METRICS_KEY, Keys, make_app, make_keys, make_settings
from tests.service.http_server import served

DOCS = Path(__file__).resolve().parents[3] / "docs" / "keys.md"
BODY = json.dumps({"prompt": "p"}).encode()
Headers = dict[str, str] | list[tuple[str, str]]

# Every attack by its name in the documentation: the path with its query, the headers, and the status of the
# answer. Words in braces are those of `values`.
ATTACKS: dict[str, tuple[str, Headers, int]] = {
    "no key": (ROUTE, {}, 401),
    "an empty header": (ROUTE, {"authorization": ""}, 401),
    "a scheme without a key": (ROUTE, {"authorization": "Bearer "}, 401),
    "a key without a scheme": (ROUTE, {"authorization": "{alice}"}, 401),
    "another scheme": (ROUTE, {"authorization": "Token {alice}"}, 401),
    "the scheme in another case": (ROUTE, {"authorization": "bEARER {alice}"}, 200),
    "spaces around the key": (ROUTE, {"authorization": " Bearer   {alice} "}, 200),
    "a tab after the scheme": (ROUTE, {"authorization": "Bearer\t{alice}"}, 401),
    "an unknown key": (ROUTE, {"authorization": "Bearer {unknown}"}, 401),
    "a key with one other character": (ROUTE, {"authorization": "Bearer {changed}"}, 401),
    "the prefix that lists show": (ROUTE, {"authorization": "Bearer {prefix}"}, 401),
    "a key without its last character": (ROUTE, {"authorization": "Bearer {shortened}"}, 401),
    "a key with one character more": (ROUTE, {"authorization": "Bearer {alice}A"}, 401),
    "a key in other case": (ROUTE, {"authorization": "Bearer {swapped}"}, 401),
    "the hash of a key": (ROUTE, {"authorization": "Bearer {hash}"}, 401),
    "a key in quotes": (ROUTE, {"authorization": 'Bearer "{alice}"'}, 401),
    "two keys in one header": (ROUTE, {"authorization": "Bearer {unknown}, Bearer {alice}"}, 401),
    "two headers, the right one first": (
        ROUTE,
        [("authorization", "Bearer {alice}"), ("authorization", "Bearer {unknown}")],
        401,
    ),
    "two headers, the right one last": (
        ROUTE,
        [("authorization", "Bearer {unknown}"), ("authorization", "Bearer {alice}")],
        401,
    ),
    "a percent-encoded key": (ROUTE, {"authorization": "Bearer {percent}"}, 401),
    "a key with a NUL": (ROUTE, {"authorization": "Bearer {alice}\0"}, 401),
    "a key with a line break": (ROUTE, {"authorization": "Bearer {alice}\r\nx: y"}, 401),
    "a key in full-width letters": (ROUTE, {"authorization": "Bearer {wide}"}, 401),
    "bytes that are no UTF-8": (ROUTE, {"authorization": "Bearer \udcff\udcfe{alice}"}, 401),
    "a header of a megabyte": (ROUTE, {"authorization": "Bearer {megabyte}"}, 401),
    "a key in the query": (ROUTE + "?api_key={alice}&key={alice}&access_token={alice}", {}, 401),
    "a key in a cookie": (ROUTE, {"cookie": "authorization=Bearer {alice}; api_key={alice}"}, 401),
    "a key in other headers": (
        ROUTE,
        {
            "x-api-key": "{alice}",
            "api-key": "{alice}",
            "proxy-authorization": "Bearer {alice}",
            "x-original-authorization": "Bearer {alice}",
        },
        401,
    ),
    "a header that is nearly called so": (ROUTE, {"authorization ": "Bearer {alice}"}, 401),
    "an expired key": (ROUTE, {"authorization": "Bearer {expired}"}, 401),
    "a revoked key": (ROUTE, {"authorization": "Bearer {revoked}"}, 401),
    "a secret that was replaced": (ROUTE, {"authorization": "Bearer {rotated}"}, 401),
    "the secret that replaced it": (ROUTE, {"authorization": "Bearer {renewed}"}, 200),
    "the admin key, to draw": (ROUTE, {"authorization": "Bearer {admin}"}, 401),
    "the metrics key, to draw": (ROUTE, {"authorization": "Bearer {metrics}"}, 401),
    "an API key, for the accounting": ("/v1/accounting", {"authorization": "Bearer {alice}"}, 401),
    "an API key, for metrics": ("/metrics", {"authorization": "Bearer {alice}"}, 401),
    "the metrics key, for keys": ("/v1/admin/keys", {"authorization": "Bearer {metrics}"}, 401),
    "the admin key, for metrics": ("/metrics", {"authorization": "Bearer {admin}"}, 200),
    "a password, where a bearer is asked for": (ROUTE, {"authorization": "Basic {password}"}, 401),
    "a password, in AUTOMATIC1111's API": (
        "/sdapi/v1/samplers",
        {"authorization": "Basic {password}"},
        200,
    ),
    "a user's name that is the key": ("/sdapi/v1/samplers", {"authorization": "Basic {name}"}, 401),
    "a password that is no base64": ("/sdapi/v1/samplers", {"authorization": "Basic !!!!"}, 401),
    "slashes too many in the path": (f"/{ROUTE}", {}, 401),
    "a path that is encoded": ("/v1/%69mages/generations", {}, 401),
    "a prefix that no proxy has": (ROUTE, {"x-forwarded-prefix": "/v1", "x-original-url": "/livez"}, 404),
    "the method HEAD": ("HEAD /v1/models", {}, 401),
    "a method in another header": (ROUTE, {"x-http-method-override": "GET"}, 401),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attacks")


@pytest.fixture(scope="module")
def keys(folder: Path) -> Keys:
    return make_keys(folder)


@pytest.fixture(scope="module")
def app(keys: Keys, folder: Path) -> FastAPI:
    return make_app(make_settings(folder))


def values(keys: Keys) -> dict[str, str]:
    """What an attacker may know or have, by the words of the table."""
    alice = keys.secrets["alice"]
    return keys.secrets | {
        "unknown": make_secret(),
        "changed": alice[:20] + ("A" if alice[20] != "A" else "B") + alice[21:],
        "prefix": alice[:11],
        "shortened": alice[:-1],
        "swapped": alice.swapcase(),
        "hash": keys.keys["alice"].secrets[0].digest.hex(),
        "percent": alice.replace("-", "%2D"),
        "wide": "".join(chr(ord(character) + 0xFEE0) for character in alice),
        "megabyte": "A" * (1 << 20),
        "admin": ADMIN_KEY,
        "metrics": METRICS_KEY,
        "password": base64.b64encode(f"user:{alice}".encode()).decode(),
        "name": base64.b64encode(f"{alice}:user".encode()).decode(),
    }


def client_of(target: str, headers: Headers) -> AsgiClient:
    """A request for `target`, a path with a query, after its method if that is not the usual one."""
    client = AsgiClient(BODY)
    method, _, url = target.rpartition(" ")
    path, _, query = url.partition("?")
    is_drawing = path.endswith("generations")
    pairs = list(headers.items()) if isinstance(headers, dict) else headers
    client.scope.update(
        {
            "method": method or ("POST" if is_drawing else "GET"),
            "path": path.replace("%69", "i"),  # as a server decodes it
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [
                (b"host", b"127.0.0.1"),
                (b"content-type", b"application/json"),
                *((name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in pairs),
            ],
        }
    )
    return client


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_attack_is_answered_as_documented(app: FastAPI, keys: Keys, name: str) -> None:
    path, headers, status = ATTACKS[name]
    words = values(keys)
    pairs = headers.items() if isinstance(headers, dict) else headers
    client = client_of(path.format_map(words), [(header, value.format_map(words)) for header, value in pairs])
    await client.call(app)
    assert client.status == status
    text = b"".join(message.get("body", b"") for message in client.sent).decode()
    head = str(client.sent[0]["headers"])
    for secret in (*keys.secrets.values(), ADMIN_KEY, METRICS_KEY):
        assert secret not in text and secret not in head
    if status == 401:
        assert path.startswith("HEAD") or client.json["error"]["code"] == "invalid_api_key"
        assert client.headers["www-authenticate"].startswith(("Bearer", "Basic"))
        assert client.headers["x-should-retry"] == "false"


def test_the_documentation_lists_every_attack() -> None:
    section = DOCS.read_text(encoding="utf-8").split("## Attacks")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| (.*?) \| (\d{3}) ", section, re.MULTILINE))
    assert {name: int(status) for name, status in rows.items()} == {
        name: status for name, (_, _, status) in ATTACKS.items()
    }
    assert len(rows) >= 30


RAW = {
    "a space before the colon": (b"Authorization : Bearer KEY\r\n", 400),
    "a header in two lines": (b"Authorization:\r\n Bearer KEY\r\n", 400),
    "a header after a lone line feed": (b"X: y\nAuthorization: Bearer KEY\r\n", 400),
    "two headers": (b"Authorization: Bearer KEY\r\nAuthorization: Bearer KEY\r\n", 401),
    "a NUL in a header": (b"Authorization: Bearer KEY\x00\r\n", 400),
    "a header that never ends": (b"Authorization: Bearer " + b"A" * (1 << 18), 400),
    "the right one": (b"authorization: Bearer KEY\r\n", 200),
}


@pytest.fixture(scope="module")
def address(app: FastAPI) -> Iterator[tuple[str, int]]:
    with served(app) as url:
        parts = urlsplit(url)
        yield str(parts.hostname), int(parts.port or 0)


@pytest.mark.parametrize("name", RAW)
def test_bytes_that_are_no_proper_header_open_nothing(
    address: tuple[str, int], keys: Keys, name: str
) -> None:
    """As a server reads them: `h11` or `httptools`, whichever is there."""
    header, status = RAW[name]
    request = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    with socket.create_connection(address, 10.0) as connection:
        connection.sendall(request + header.replace(b"KEY", keys.secrets["alice"].encode()))
        try:
            connection.sendall(b"\r\n")
            answer = connection.makefile("rb").read()
        except OSError:  # it was refused before it was read
            answer = b"HTTP/1.1 400 "
    assert int(answer.split()[1]) == status, answer


async def test_of_ten_thousand_wrong_keys_none_costs_a_query(tmp_path: Path) -> None:
    keys = await asyncio.to_thread(make_keys, tmp_path)
    app = build_gateway(FakeBackend(), MODEL, make_settings(tmp_path, key_refresh_seconds=3600.0))
    access = app.state.gateway.access
    num_queries = 0
    read = access.source.keys.changed_since

    async def counted(revision: int) -> Any:
        nonlocal num_queries
        num_queries += 1
        return await read(revision)

    access.source.keys.changed_since = counted
    access.source._clock = lambda: 0.0  # at one moment
    good = keys.secrets["alice"]
    for k in range(10_000):
        attempt = good[: k % 46] + make_secret()[k % 46 :]
        client = client_of("/v1/models", {"authorization": f"Bearer {attempt}"})
        if attempt != good and k % 100 == 0:
            await client.call(app)
            assert client.status == 401
        elif attempt != good:
            with pytest.raises(Exception, match="no such API key"):
                await access.find(attempt)
    assert num_queries == 1
    assert len(access.source.copy) == 4
