"""How the page and its files are served: addresses, headers, copies in caches."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest
from starlette.testclient import TestClient

from safelight.service.http.gateway import build_gateway
from safelight.service.http.page.routes import FILES
from safelight.service.settings import Settings
from tests.fakes import MODEL, FakeBackend
from tests.service.conftest import ROUTE

PATHS = ["/", *(f"/page/{file.name}" for file in FILES.iterdir() if file.name != "index.html")]


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(build_gateway(FakeBackend(), MODEL, Settings())) as client:
        yield client


class References(HTMLParser):
    """Collects what a page loads, and whatever in it a strict policy would refuse."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.inline: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [str(values[name]) for name in ("src", "href") if values.get(name)]
        self.inline += [name for name in values if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in values):
            self.inline.append(tag)


@pytest.mark.parametrize("path", PATHS)
def test_a_file_has_its_type_and_its_headers(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    kind = {"": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    assert response.headers["content-type"].partition(";")[0] == kind[path.partition(".")[2]]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["x-frame-options"] == "DENY"
    policy = response.headers["content-security-policy"].split("; ")
    assert policy[0] == "default-src 'none'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert {"img-src 'self' blob: data:", "base-uri 'none'", "form-action 'none'"} < set(policy)


@pytest.mark.parametrize("path", PATHS)
def test_head_is_get_without_the_body(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(get.content))
    assert head.headers["etag"] == get.headers["etag"]


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}'])
def test_a_copy_that_is_the_same_is_not_sent_again(client: TestClient, form: str) -> None:
    etag = client.get("/page/app.js").headers["etag"]
    again = client.get("/page/app.js", headers={"if-none-match": form.format(etag)})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == etag
    assert client.get("/page/api.js", headers={"if-none-match": etag}).status_code == 200


def test_the_page_loads_its_own_files_by_relative_addresses(client: TestClient) -> None:
    references = References(client.get("/").text)
    assert references.inline == []
    for link in references.links:
        assert re.fullmatch(r"#\w+|docs|page/[a-z]+\.(js|css|svg)", link), link
        if link.startswith("page/"):
            assert client.get(f"/{link}").status_code == 200


def test_the_files_name_no_other_origin() -> None:
    for file in FILES.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert re.findall(r"https?:|[\"'(]//|@import|[ :]url\(", text) == [], file.name


def test_the_page_is_served_under_a_prefix() -> None:
    app = build_gateway(FakeBackend(), MODEL, Settings())
    with TestClient(app, root_path="/images") as client:
        assert "page/app.js" in client.get("/images/").text
        assert client.get("/images/page/app.js").status_code == 200


@pytest.mark.parametrize("path", ["/page", "/page/", "/page/nothing.js", "/page/index.html", "/index.html"])
def test_other_paths_stay_errors_in_json(client: TestClient, path: str) -> None:
    assert client.get(path).json()["error"]["code"] == "not_found"


def test_the_page_is_no_part_of_the_schema(client: TestClient) -> None:
    assert not [path for path in client.get("/openapi.json").json()["paths"] if "page" in path or path == "/"]


def test_the_model_says_what_a_form_needs(client: TestClient) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model["edits"] is True
    for field, values in model["limits"].items():
        for value in values:
            body = {"prompt": "p", field: "p" * value if field == "prompt" else value}
            assert client.post(ROUTE, json=body).status_code == 200
        beyond = "p" * (values[1] + 1) if field == "prompt" else values[1] + 1
        headers = {"x-safelight-strict": "1"}  # for services that adjust what is out of range
        refused = client.post(ROUTE, json={"prompt": "p", field: beyond}, headers=headers)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)
