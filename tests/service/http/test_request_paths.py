"""Paths and methods as clients and proxies write them, and calls from pages of other origins."""

import re

import pytest
from starlette.testclient import TestClient

from safelight.service.http.gateway import build_gateway
from safelight.service.setting_types import BadSetting
from safelight.service.settings import Settings
from tests.fakes import MODEL, FakeBackend
from tests.service.asgi import AsgiClient
from tests.service.conftest import ROUTE

ORIGIN = "https://chat.example.com"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, x-safelight-strict",
}


def client_of(**settings: object) -> TestClient:
    return TestClient(build_gateway(FakeBackend(), MODEL, Settings(**settings)))


@pytest.mark.parametrize("path", [f"{ROUTE}/", f"{ROUTE}//", "/v1//images/generations", f"/{ROUTE}"])
def test_slashes_too_many_make_no_difference(client: TestClient, path: str) -> None:
    assert client.post(f"http://testserver{path}", json={"prompt": "p"}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/health", "/v1/models", "/v1/models/fake-8", "/docs", "/metrics"]
)
def test_head_is_get_without_a_body(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert head.headers["x-request-id"]


async def test_the_body_of_an_answer_to_head_is_not_sent() -> None:
    """Held to the messages: HTTP clients drop such a body."""
    client = AsgiClient(b"")
    client.scope.update({"method": "HEAD", "path": "/livez"})
    await client.call(build_gateway(FakeBackend(), MODEL, Settings()))
    assert client.status == 200 and int(client.headers["content-length"]) > 0
    assert [message.get("body", b"") for message in client.sent] == [b""] * len(client.sent)


def test_head_where_there_is_no_get_is_405(client: TestClient) -> None:
    response = client.head(ROUTE)
    assert (response.status_code, response.headers["allow"], response.content) == (405, "POST", b"")


def test_health_says_what_readyz_says(client: TestClient, backend: FakeBackend) -> None:
    assert client.get("/health").json() == client.get("/readyz").json()
    backend.stages = {**backend.stages, "denoise": None}
    for path in ("/health", "/readyz"):
        assert client.get(path).status_code == 503


@pytest.mark.parametrize("prefix", ["/safelight", "/apps/draw-1"])
@pytest.mark.parametrize("is_stripped", [True, False])
@pytest.mark.parametrize("is_set", [True, False])
def test_a_prefix_is_no_part_of_a_route(prefix: str, is_stripped: bool, is_set: bool) -> None:
    """Whether the proxy takes it away or not, by the setting or by the proxy's header."""
    client = client_of(root_path=prefix if is_set else "")
    headers = {} if is_set else {"x-forwarded-prefix": prefix}
    base = "" if is_stripped else prefix
    assert client.post(f"{base}{ROUTE}/", json={"prompt": "p"}, headers=headers).status_code == 200
    page = client.get(f"{base}/docs", headers=headers).text
    links = re.findall(r"(?:href|src)=\"([^\"]*)\"|url: '([^']*)'", page)
    addresses = [first or second for first, second in links]
    assert f"{prefix}/openapi.json" in addresses and len(addresses) == 4
    for address in addresses:
        assert address.startswith(f"{prefix}/")
        path = address.removeprefix(prefix) if is_stripped else address
        assert client.get(path, headers=headers).status_code == 200, address
    schema = client.get(f"{base}/openapi.json", headers=headers).json()
    assert schema["servers"] == [{"url": prefix}]
    assert client.get(f"{base}/nothing", headers=headers).status_code == 404
    index = client.get(f"{base}/", headers=headers)
    assert index.status_code == 200 and index.headers["content-type"].startswith("text/html")


def test_the_prefix_alone_is_sent_on_to_the_page() -> None:
    client = client_of(root_path="/safelight")
    response = client.get("/safelight", follow_redirects=False)
    assert (response.status_code, response.headers["location"]) == (307, "/safelight/")


@pytest.mark.parametrize(
    "prefix", ["//evil.example", "/a'b", "javascript:", "/a/../b/<script>", "/" + "a/" * 20]
)
def test_a_forwarded_prefix_that_is_no_path_is_ignored(client: TestClient, prefix: str) -> None:
    page = client.get("/docs", headers={"x-forwarded-prefix": prefix})
    assert page.status_code == 200
    assert "url: '/openapi.json'" in page.text and prefix not in page.text


def test_no_other_origin_may_call_by_default(client: TestClient) -> None:
    assert client.options(ROUTE, headers=PREFLIGHT).status_code == 405
    response = client.post(ROUTE, json={"prompt": "p"}, headers={"origin": ORIGIN})
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origins", [f"http://localhost:3000, {ORIGIN}", "*"])
def test_origins_that_are_set_may_call(origins: str) -> None:
    client = client_of(cors_origins=origins)
    allowed = "*" if origins == "*" else ORIGIN
    preflight = client.options(ROUTE, headers=PREFLIGHT)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == allowed
    assert "x-safelight-strict" in preflight.headers["access-control-allow-headers"]
    for body, status in (({"prompt": "p"}, 200), ({}, 400)):
        response = client.post(ROUTE, json=body, headers={"origin": ORIGIN})
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == allowed
        assert "x-safelight-adjusted" in response.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in response.headers


def test_a_fault_of_the_service_has_the_headers_of_its_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.service.http.image_requests.read_request", lambda *_: 1 / 0)
    response = client_of(cors_origins=ORIGIN).post(ROUTE, json={"prompt": "p"}, headers={"origin": ORIGIN})
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (503, ORIGIN)


def test_an_origin_that_is_not_set_is_refused() -> None:
    client = client_of(cors_origins=ORIGIN)
    headers = PREFLIGHT | {"origin": "https://evil.example"}
    response = client.options(ROUTE, headers=headers)
    assert response.status_code == 400 and "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cors_origins": "https://a.example/path"}, "cors_origins must be origins"),
        ({"cors_origins": "a.example"}, "cors_origins must be origins"),
        ({"root_path": "safelight"}, "root_path must be a path"),
        ({"root_path": "/safelight/"}, "root_path must be a path"),
        ({"aliases": "a b"}, "aliases must be names"),
    ],
)
def test_settings_that_are_no_paths_or_origins_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        Settings(**settings)
