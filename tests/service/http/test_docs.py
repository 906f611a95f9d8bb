"""The interactive documentation is served whole by the gateway."""

import re
from html.parser import HTMLParser

import pytest
from starlette.testclient import TestClient

from safelight.service.http.docs import ASSETS_URL
from safelight.service.http.gateway import build_gateway
from safelight.service.settings import Settings
from tests.fakes import MODEL, FakeBackend


class LinkCollector(HTMLParser):
    """Collects the addresses that a page loads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href") and value]


def test_docs_load_everything_from_the_service(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert re.findall(r"(?:https?:)?//[a-z]", page.text) == []  # the page names no other origin
    links = LinkCollector(page.text).links
    assert {link.rpartition(".")[2] for link in links} == {"js", "css", "png"}
    for link in links:
        assert link.startswith(f"{ASSETS_URL}/")
        asset = client.get(link)
        assert asset.status_code == 200 and len(asset.content) > 1000, link


def test_the_stylesheet_loads_nothing(client: TestClient) -> None:
    style = client.get(f"{ASSETS_URL}/swagger-ui.css").text
    assert "@import" not in style
    assert all(address.startswith("data:") for address in re.findall(r"url\(['\"]?([^)]*)", style))


def test_the_schema_is_not_sent_to_a_validator(client: TestClient) -> None:
    assert '"validatorUrl": null' in client.get("/docs").text


@pytest.mark.parametrize("path", ["/redoc", f"{ASSETS_URL}/nothing.js"])
def test_pages_and_assets_that_do_not_exist_are_404(client: TestClient, path: str) -> None:
    assert client.get(path).json()["error"]["code"] == "not_found"


def test_the_operators_routes_declare_their_bearer_key() -> None:
    schema = build_gateway(FakeBackend(), MODEL, Settings(admin_key="secret")).openapi()
    scheme = schema["components"]["securitySchemes"]["admin_key"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    secured = {
        (path, method): operation["security"]
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
        if "security" in operation
    }
    routes = (("/v1/accounting", "get"), ("/v1/models", "post"), ("/v1/models/{model_id}", "delete"))
    assert secured == dict.fromkeys(routes, [{"admin_key": []}])
