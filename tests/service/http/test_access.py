"""Which route asks for what, with keys and without; and what pages of other origins may send."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from safelight.service.http import gateway as gateway_module
from safelight.service.http.access import GuardedRoute
from safelight.service.http.gateway import build_gateway
from safelight.service.http.gateway_parts import Gateway
from safelight.service.http.route_rules import RULES, NoRule, Rule, rule_of
from safelight.service.settings import Settings
from tests.fakes import MODEL, FakeBackend
from tests.service.conftest import ROUTE
from tests.service.http.keyed import (
    ADMIN_KEY,
    METRICS_KEY,
    Keys,
    keyed_client,
    make_app,
    make_keys,
    make_settings,
)

BODY = {"prompt": "p"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("access")


@pytest.fixture(scope="module")
def keys(folder: Path) -> Keys:
    return make_keys(folder)


@pytest.fixture(scope="module")
def client(keys: Keys, folder: Path) -> Iterator[TestClient]:
    with keyed_client(make_settings(folder)) as client:
        yield client


def requests_of(app: FastAPI) -> dict[str, tuple[str, str, Rule]]:
    """One request for every method of every route: method, path and rule."""
    requests = {}
    for route in app.routes:
        assert isinstance(route, Route | Mount) and isinstance(route.app, GuardedRoute), route
        path = route.path.replace("{model_id:path}", MODEL.id).replace("{name}", "x")
        methods = getattr(route, "methods", None) or {"GET"}
        for method in methods - {"HEAD"}:
            requests[f"{method} {route.path}"] = (method, path, route.app.rule)
    return requests


def test_every_route_refuses_who_has_not_what_its_rule_asks_for(folder: Path, keys: Keys) -> None:
    with TestClient(make_app(make_settings(folder))) as client:  # whose answers are of any form
        check_every_route(client, keys)


OPEN = ("/", "/livez", "/readyz", "/health", "/openapi.json", "/v1/images/files/{name}")
OPEN_FOLDERS = ("/page/", "/docs")
OPERATORS = {"/metrics": Rule.METRICS, "/v1/accounting": Rule.ADMIN}


def expected_rules(method: str, path: str) -> set[Rule]:
    """The rules that a route may have, by what the documentation promises."""
    if path in OPEN or path.startswith(OPEN_FOLDERS):
        return {Rule.PUBLIC, Rule.SIGNED}
    changes_models = path.startswith("/v1/models") and method != "GET"
    if path in OPERATORS or path.startswith("/v1/admin/") or changes_models:
        return {OPERATORS.get(path, Rule.ADMIN)}
    is_drawing = path.endswith(("/generations", "/edits", "/txt2img", "/img2img", "/mcp"))
    is_drawing |= (method, path) == ("POST", "/v1/batches")
    return {Rule.DRAWING if is_drawing else Rule.CALLER}


def check_every_route(client: TestClient, keys: Keys) -> None:
    headers: dict[Rule, dict[str, str]] = {
        Rule.CALLER: keys.bearer("alice"),
        Rule.DRAWING: keys.bearer("alice"),
        Rule.METRICS: {"authorization": f"Bearer {METRICS_KEY}"},
        Rule.ADMIN: {"authorization": f"Bearer {ADMIN_KEY}"},
    }
    requests = requests_of(client.app)  # type: ignore[arg-type]
    assert len(requests) > 45 and {rule for _, _, rule in requests.values()} == set(Rule)
    for name, (method, path, rule) in requests.items():
        assert rule in expected_rules(method, name.partition(" ")[2]), name
        is_open = rule in (Rule.PUBLIC, Rule.SIGNED)
        status = client.request(method, path).status_code
        assert (status == 401) == (not is_open), (name, status)
        for other, header in headers.items():
            status = client.request(method, path, headers=header).status_code
            is_admitted = is_open or header == headers[rule] or (rule, other) == (Rule.METRICS, Rule.ADMIN)
            assert (status != 401) == is_admitted, (name, other, status)


def test_the_rules_are_of_routes_that_exist(client: TestClient) -> None:
    routes = requests_of(client.app)  # type: ignore[arg-type]
    paths = {name.partition(" ")[2] for name in routes}
    assert RULES.keys() - paths - routes.keys() == set()


def test_a_route_without_a_rule_keeps_the_gateway_from_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(app: FastAPI, gateway: Gateway) -> None:
        app.get("/v1/new")(lambda: None)

    monkeypatch.setattr(gateway_module, "ROUTES", (*gateway_module.ROUTES, add))
    with pytest.raises(NoRule, match="/v1/new: say in RULES who may call it"):
        build_gateway(FakeBackend(), MODEL, Settings())


def test_a_route_of_another_kind_keeps_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(app: FastAPI, gateway: Gateway) -> None:
        app.router.routes.append(Starlette().router)  # type: ignore[arg-type]

    monkeypatch.setattr(gateway_module, "ROUTES", (*gateway_module.ROUTES, add))
    with pytest.raises(NoRule, match="unknown kind"):
        build_gateway(FakeBackend(), MODEL, Settings())


def test_a_method_may_have_a_rule_of_its_own() -> None:
    assert rule_of("/v1/models", ("POST",)) is Rule.ADMIN
    assert rule_of("/v1/models", ("GET", "PUT")) is Rule.CALLER
    with pytest.raises(NoRule):
        rule_of("/v1/models", ("GET", "POST"))
    with pytest.raises(NoRule):
        rule_of("/v1/models", ())


def test_pages_have_rules_by_their_folder() -> None:
    assert rule_of("/page/app.js") is Rule.PUBLIC
    for path in ("/page", "/pages/x", "/v1/page/x"):
        with pytest.raises(NoRule):
            rule_of(path)


def test_without_keys_nothing_is_asked_for() -> None:
    with TestClient(build_gateway(FakeBackend(), MODEL, Settings())) as client:
        for header in ({}, {"authorization": "Bearer whatever"}):
            assert client.post(ROUTE, json=BODY, headers=header).status_code == 200
            assert client.get("/metrics", headers=header).status_code == 200
            assert client.get("/v1/accounting", headers=header).status_code == 200
        assert client.get("/v1/admin/keys").status_code == 404


@pytest.mark.parametrize(
    ("settings", "metrics", "accounting"),
    [
        ({"admin_key": "", "metrics_key": ""}, 401, 401),  # closed to everybody
        ({"admin_key": ADMIN_KEY, "metrics_key": ""}, 200, 200),
        ({"admin_key": "", "metrics_key": ADMIN_KEY}, 200, 401),
    ],
)
def test_with_keys_the_operators_routes_are_closed(
    folder: Path, settings: dict[str, Any], metrics: int, accounting: int
) -> None:
    client = TestClient(make_app(make_settings(folder, **settings)))
    for header in ({}, {"authorization": "Bearer "}, {"authorization": "Bearer wrong"}):
        assert client.get("/metrics", headers=header).status_code == 401
        assert client.get("/v1/accounting", headers=header).status_code == 401
    header = {"authorization": f"Bearer {ADMIN_KEY}"}
    assert client.get("/metrics", headers=header).status_code == metrics
    assert client.get("/v1/accounting", headers=header).status_code == accounting


def test_metrics_can_have_a_key_without_others() -> None:
    client = TestClient(build_gateway(FakeBackend(), MODEL, Settings(metrics_key="m", admin_key="a")))
    assert client.get("/metrics").json()["error"]["message"].startswith("Metrics need a key")
    for key in ("m", "a"):
        assert client.get("/metrics", headers={"authorization": f"Bearer {key}"}).status_code == 200
    assert client.post(ROUTE, json=BODY).status_code == 200


def test_the_schema_says_which_key_a_route_asks_for(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    keys_of = {
        f"{method.upper()} {path}": [name for choice in operation.get("security", []) for name in choice]
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    }
    assert keys_of[f"POST {ROUTE}"] == keys_of["GET /v1/models/{model_id}"] == ["api_key"]
    assert keys_of["POST /sdapi/v1/txt2img"] == ["api_key", "api_key_as_password"]
    assert keys_of["GET /v1/accounting"] == keys_of["DELETE /v1/admin/keys/{name}"] == ["admin_key"]
    assert keys_of["GET /metrics"] == ["metrics_key", "admin_key"]
    assert keys_of["GET /livez"] == keys_of["GET /v1/images/files/{name}"] == []
    schemes = schema["components"]["securitySchemes"]
    assert schemes.keys() == {"api_key", "api_key_as_password", "admin_key", "metrics_key"}
    assert (schemes["api_key"]["type"], schemes["api_key"]["scheme"]) == ("http", "bearer")
    assert {"401", "403", "429", "503"} <= schema["paths"][ROUTE]["post"]["responses"].keys()
    bare = build_gateway(FakeBackend(), MODEL, Settings()).openapi()
    assert "securitySchemes" not in bare["components"]
    assert "security" not in str(bare["paths"])


OWN, EVIL = "http://testserver", "https://evil.example.org"
SITES: dict[str, tuple[dict[str, str], int]] = {
    "no browser": ({}, 200),
    "the service's own page": ({"origin": OWN, "sec-fetch-site": "same-origin"}, 200),
    "its own page, in an older browser": ({"origin": OWN}, 200),
    "its own page, behind a proxy": ({"origin": "https://x.org", "x-forwarded-host": "x.org"}, 200),
    "the address bar": ({"sec-fetch-site": "none"}, 200),
    "an allowed page": ({"origin": "https://chat.example.com", "sec-fetch-site": "cross-site"}, 200),
    "the page of a public address": ({"origin": "https://images.example.org"}, 200),
    "another site": ({"origin": EVIL, "sec-fetch-site": "cross-site"}, 403),
    "another site, in an older browser": ({"origin": EVIL}, 403),
    "another port of this host": ({"origin": f"{OWN}:81", "sec-fetch-site": "same-site"}, 403),
    "another site that names itself the host": ({"origin": OWN, "sec-fetch-site": "cross-site"}, 403),
    "a form without an origin": ({"sec-fetch-site": "cross-site"}, 403),
    "a sandboxed frame": ({"origin": "null", "sec-fetch-site": "cross-site"}, 403),
    "a broken origin": ({"origin": "http://[::1"}, 403),
    "an origin without a host": ({"origin": "file://", "host": ""}, 403),
}


@pytest.mark.parametrize("name", SITES)
def test_without_keys_pages_of_other_origins_send_nothing(name: str) -> None:
    headers, status = SITES[name]
    settings = Settings(cors_origins="https://chat.example.com", public_url="https://images.example.org/x")
    client = TestClient(build_gateway(FakeBackend(), MODEL, settings))
    for path in (ROUTE, "/v1/images/edits", "/sdapi/v1/interrupt"):
        answer = client.post(path, json=BODY, headers=headers)
        assert (answer.status_code == 403) == (status == 403), answer.text
    if status == 403 and headers.get("host") != "":
        assert answer.json()["error"]["code"] == "cross_site_request"
    if headers.get("host") != "":
        assert client.get("/v1/models", headers=headers).status_code == 200  # the browser shows it to nobody


def test_an_operator_may_allow_every_origin() -> None:
    client = TestClient(build_gateway(FakeBackend(), MODEL, Settings(cors_origins="*")))
    assert client.post(ROUTE, json=BODY, headers={"origin": EVIL}).status_code == 200


def test_with_keys_any_page_may_send_that_has_one(client: TestClient, keys: Keys) -> None:
    headers = {"origin": EVIL, "sec-fetch-site": "cross-site"}
    assert client.post(ROUTE, json=BODY, headers=headers | keys.bearer("alice")).status_code == 200
    assert client.post(ROUTE, json=BODY, headers=headers).status_code == 401


def test_a_password_that_the_browser_adds_is_not_taken_from_another_page(
    client: TestClient, keys: Keys
) -> None:
    post = client.post("/sdapi/v1/txt2img", json=BODY, auth=("user", keys.secrets["alice"]))
    assert post.status_code == 200
    headers = {"origin": EVIL, "sec-fetch-site": "cross-site"}
    post = client.post("/sdapi/v1/txt2img", json=BODY, auth=("user", keys.secrets["alice"]), headers=headers)
    assert post.json()["error"]["code"] == "cross_site_request"


def test_a_missing_password_is_asked_for(client: TestClient) -> None:
    answer = client.get("/sdapi/v1/options")
    assert answer.headers["www-authenticate"] == 'Basic realm="safelight", charset="UTF-8"'
    assert client.get("/v1/models").headers["www-authenticate"] == 'Bearer realm="safelight"'


HOSTS = {
    "127.0.0.1:8000": 200,
    "localhost": 200,
    "[::1]:8000": 200,
    "safelight": 200,  # a container's name
    "images.internal": 200,
    "draw.example.net": 200,  # of trusted_hosts
    "images.example.org": 200,  # of public_url
    "evil.example.org": 403,
    "127.0.0.1.evil.example.org": 403,
    "": 403,
    "[::1": 403,
}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("path", ["/v1/models", ROUTE, "/v1/accounting", "/metrics"])
def test_on_a_loopback_address_other_hosts_are_refused(host: str, path: str) -> None:
    settings = Settings(trusted_hosts="draw.example.net", public_url="https://images.example.org")
    client = TestClient(build_gateway(FakeBackend(), MODEL, settings))
    method, body = ("POST", BODY) if path == ROUTE else ("GET", None)
    answer = client.request(method, path, json=body, headers={"host": host})
    assert answer.status_code == HOSTS[host]
    if answer.status_code == 403:
        assert answer.json()["error"]["code"] == "untrusted_host"
        assert "trusted_hosts" in answer.json()["error"]["message"]


def test_two_hosts_are_refused() -> None:
    client = TestClient(build_gateway(FakeBackend(), MODEL, Settings()))
    headers = [("host", "localhost"), ("host", "evil.example.org")]
    assert client.get("/v1/models", headers=headers).status_code == 403


@pytest.mark.parametrize("path", ["/", "/livez", "/docs", "/openapi.json"])
def test_what_is_public_is_so_for_every_host(path: str) -> None:
    client = TestClient(build_gateway(FakeBackend(), MODEL, Settings()))
    assert client.get(path, headers={"host": "evil.example.org"}).status_code == 200


def test_elsewhere_and_with_keys_any_host_is_served(client: TestClient, keys: Keys) -> None:
    headers = {"host": "images.example.org"}
    assert client.get("/v1/models", headers=headers | keys.bearer("alice")).status_code == 200
    settings = Settings(host="0.0.0.0", require_api_keys="never")
    open_client = TestClient(build_gateway(FakeBackend(), MODEL, settings))
    assert open_client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("values", "requires"),
    [
        ({}, False),
        ({"host": "::1"}, False),
        ({"host": "[::1]"}, False),
        ({"host": "127.1.2.3"}, False),
        ({"host": "localhost"}, False),
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "192.168.1.5"}, True),
        ({"host": "safelight.example.org"}, True),
        ({"host": "localhost.example.org"}, True),
        ({"api_keys_file": __file__}, True),
        ({"host": "0.0.0.0", "require_api_keys": "never"}, False),
        ({"require_api_keys": "always"}, True),
    ],
)
def test_keys_are_asked_for_except_on_loopback(values: dict[str, Any], requires: bool) -> None:
    assert Settings(**values).requires_keys is requires
