"""`response_format: url`: links in the answer, what they lead to, and who may follow them."""

import base64
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from starlette.testclient import TestClient

from safelight.service.errors import StageFailed
from safelight.service.http import gateway_parts, image_files
from safelight.service.http.gateway import build_gateway
from safelight.service.image_store.signing_key import KEY_NAME
from safelight.service.image_store.store import ImageStore
from safelight.service.messages import ImageFormat
from safelight.service.settings import Settings
from tests.clock import ManualClock
from tests.fakes import MODEL, FakeBackend, fake_image, make_params
from tests.service.conftest import ROUTE
from tests.service.image_store.test_store import image_files as stored_files
from tests.service.image_store.test_store import largest_file
from tests.service.openapi_answers import check_answers

BODY: dict[str, Any] = {"prompt": "p", "seed": 7, "response_format": "url"}


@dataclass
class Service:
    """A gateway whose images are stored in `folder`; its clock stands still."""

    client: TestClient
    backend: FakeBackend
    folder: Path
    clock: ManualClock

    def draw(self, **fields: object) -> list[dict[str, str]]:
        response = self.client.post(ROUTE, json=BODY | fields)
        assert response.status_code == 200, response.text
        images: list[dict[str, str]] = response.json()["data"]
        return images

    def link(self, **fields: object) -> str:
        """The path and query of the link to one image."""
        parts = urlsplit(self.draw(**fields)[0]["url"])
        return f"{parts.path}?{parts.query}"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    clock = ManualClock(1_700_000_000.5)
    monkeypatch.setattr(image_files, "time", clock)
    monkeypatch.setattr(gateway_parts, "ImageStore", partial(ImageStore, clock=clock.time))
    return clock


@pytest.fixture
def service(tmp_path: Path, clock: ManualClock) -> Iterator[Service]:
    folder = tmp_path / "images"
    backend = FakeBackend()
    settings = Settings(image_store=str(folder), link_seconds=3600.0)
    with TestClient(build_gateway(backend, MODEL, settings)) as client:
        check_answers(client)
        yield Service(client, backend, folder, clock)


def test_a_link_leads_to_the_image(service: Service) -> None:
    (image,) = service.draw()
    assert image.keys() == {"url"}
    assert image["url"].startswith("http://testserver/v1/images/files/1700003601-")
    response = service.client.get(image["url"])
    assert response.status_code == 200
    assert response.content == fake_image(make_params(prompt="p", seed=7), ImageFormat("png", 100))


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_the_file_says_what_it_is_and_how_long_it_may_be_kept(service: Service, format: str) -> None:
    link = service.link(output_format=format)
    service.clock.advance(600.0)
    response = service.client.get(link)
    headers = response.headers
    assert headers["content-type"] == f"image/{format}"
    assert headers["content-length"] == str(len(response.content))
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "private, max-age=3000, immutable"
    assert headers["content-disposition"].startswith('inline; filename="safelight-')
    assert headers["content-disposition"].endswith(f'.{format}"')
    assert headers["content-security-policy"] == "default-src 'none'; sandbox"


def test_head_is_get_without_the_image(service: Service) -> None:
    link = service.link()
    get, head = service.client.get(link), service.client.head(link)
    assert head.status_code == 200 and head.content == b""
    fixed = set(get.headers) - {"x-request-id", "openai-processing-ms"}
    assert {name: head.headers[name] for name in fixed} == {name: get.headers[name] for name in fixed}
    assert service.client.head(link[:-1]).status_code == 403


def test_a_caller_that_has_the_image_is_not_sent_it_again(service: Service) -> None:
    link = service.link()
    etag = service.client.get(link).headers["etag"]
    response = service.client.get(link, headers={"if-none-match": etag})
    assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", etag)
    assert service.client.get(link, headers={"if-none-match": '"other"'}).status_code == 200


def test_a_link_ends_when_it_says(service: Service) -> None:
    link = service.link()
    expires = int(parse_qs(urlsplit(link).query)["expires"][0])
    assert expires == 1_700_003_601
    service.clock.now = expires - 0.25
    assert service.client.get(link).status_code == 200
    service.clock.now = float(expires)
    response = service.client.get(link)
    assert (response.status_code, response.json()["error"]["code"]) == (410, "link_expired")


def test_a_changed_link_is_refused(service: Service) -> None:
    link = service.link()
    path, _, query = link.partition("?")
    expires, signature = (value for (value,) in parse_qs(query).values())
    later = str(int(expires) + 1)
    other = service.link(seed=8).partition("?")[0]
    for changed in (
        f"{path}?expires={later}&signature={signature}",
        f"{path.replace(expires, later)}?{query}",
        f"{other}?{query}",
        f"{path}?expires={expires}&signature={signature[:-1]}",
        f"{path}?expires={expires}&signature=%C3%A9",
    ):
        response = service.client.get(changed)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "invalid_link"), changed


@pytest.mark.parametrize(
    ("query", "param"),
    [("", "expires"), ("?expires=1", "signature"), ("?expires=x&signature=a", "expires")],
)
def test_an_incomplete_link_names_what_is_missing(service: Service, query: str, param: str) -> None:
    response = service.client.get(service.link().partition("?")[0] + query)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "name",
    [
        KEY_NAME,
        "secret.png",
        "..",
        "../secret.png",
        "..%2Fsecret.png",
        "%2e%2e%2fsecret.png",
        "..%5Csecret.png",
        "%2Fetc%2Fpasswd",
        "images/../../secret.png",
        "1700003601-0000000000000000-00000000000000000000000000000000.png%00",
        "1700003601-0000000000000000-00000000000000000000000000000000.svg",
    ],
)
def test_no_other_file_can_be_had(service: Service, name: str) -> None:
    """Not even with a signature of the service's own key."""
    service.link()
    (service.folder / "secret.png").write_bytes(b"secret")
    (service.folder.parent / "secret.png").write_bytes(b"secret")
    signer = service.client.portal.call(ImageStore(str(service.folder)).signer)  # type: ignore[union-attr]
    response = service.client.get(f"/v1/images/files/{name}?{signer.query(name, 1_800_000_000)}")
    assert response.status_code == 404
    assert b"secret" not in response.content


def test_a_deleted_image_is_404(service: Service) -> None:
    link = service.link()
    (file,) = stored_files(service.folder)
    (service.folder / file).unlink()
    response = service.client.get(link)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "image_not_found")


def test_another_file_under_the_images_name_is_404(service: Service) -> None:
    link = service.link()
    (file,) = stored_files(service.folder)
    (service.folder / file).write_bytes(b"<script>")
    response = service.client.get(link)
    assert response.status_code == 404
    assert "changed by another program" in response.json()["error"]["message"]


def test_any_gateway_of_the_store_answers_a_link(service: Service) -> None:
    link = service.link()
    settings = Settings(image_store=str(service.folder))
    with TestClient(build_gateway(FakeBackend(), MODEL, settings)) as other:
        assert other.get(link).content == service.client.get(link).content
    elsewhere = Settings(image_store=str(service.folder / "other"))
    with TestClient(build_gateway(FakeBackend(), MODEL, elsewhere)) as other:
        assert other.get(link).status_code == 403


def test_a_full_disk_is_an_error_and_nothing_stays(service: Service) -> None:
    kept = service.link()
    with largest_file(10):
        response = service.client.post(ROUTE, json=BODY | {"n": 3})
    assert response.status_code == 503
    error = response.json()["error"]
    assert error["code"] == "image_store_failed"
    assert error["message"] == "The images were drawn and could not be stored: File too large."
    assert "retry-after" not in response.headers  # to draw them again would not make room
    assert len(stored_files(service.folder)) == 1
    assert service.client.get(kept).status_code == 200


def test_a_store_that_cannot_be_opened_is_told_before_anything_is_drawn(
    tmp_path: Path, backend: FakeBackend
) -> None:
    (tmp_path / "file").touch()
    settings = Settings(image_store=str(tmp_path / "file" / "images"))
    client = TestClient(build_gateway(backend, MODEL, settings))
    response = client.post(ROUTE, json=BODY)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "image_store_failed")
    assert backend.calls == []


def test_links_can_be_turned_off(backend: FakeBackend) -> None:
    client = TestClient(build_gateway(backend, MODEL, Settings(image_store="none")))
    response = client.post(ROUTE, json=BODY)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "response_format")
    assert "turned off" in error["message"] and backend.calls == []
    assert client.get("/v1/images/files/x.png?expires=1&signature=a").status_code == 404
    response = client.post(ROUTE, json={"prompt": "p", "model": "dall-e-2"})
    assert response.json()["data"][0].keys() == {"b64_json"}


@pytest.mark.parametrize(
    ("headers", "start"),
    [
        ({"x-forwarded-prefix": "/images/", "x-forwarded-proto": "https"}, "https://testserver/images/v1/"),
        ({"x-forwarded-host": "example.org"}, "http://example.org/v1/"),
    ],
)
def test_a_link_begins_with_what_proxies_say(service: Service, headers: dict[str, str], start: str) -> None:
    (image,) = service.client.post(ROUTE, json=BODY, headers=headers).json()["data"]
    assert image["url"].startswith(start)


def test_links_are_not_streamed(service: Service) -> None:
    response = service.client.post(ROUTE, json=BODY | {"stream": True})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "response_format")


def test_openais_older_models_answer_links_and_images(service: Service) -> None:
    """OpenAI's default for them is a link, which LangChain reads; other clients read the image."""
    fields = {"response_format": None, "model": "dall-e-2", "n": 2}
    for image in service.draw(**fields):
        assert service.client.get(image["url"]).content == base64.b64decode(image["b64_json"])
    assert service.draw(response_format="b64_json", model="dall-e-2")[0].keys() == {"b64_json"}
    assert service.draw(response_format="url", model="dall-e-2")[0].keys() == {"url"}
    assert service.draw(response_format=None, model="gpt-image-1")[0].keys() == {"b64_json"}
    assert len(stored_files(service.folder)) == 3


def test_an_image_is_not_lost_for_a_link_that_nobody_asked_for(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    fields = {"response_format": None, "model": "dall-e-2"}
    for _ in ("the store cannot be opened", "the image cannot be stored"):
        with largest_file(10):
            (image,) = service.draw(**fields)
        assert image.keys() == {"b64_json"}
        assert "without links" in caplog.text
        caplog.clear()
        service.link()


def test_storing_is_charged_to_the_request(service: Service) -> None:
    usage = service.client.post(ROUTE, json=BODY | {"n": 2}).json()["usage"]["safelight"]
    sizes = [(service.folder / file).stat().st_size for file in stored_files(service.folder)]
    assert usage["stored_bytes"] == sum(sizes) > 0
    assert 0 < usage["store_seconds"] < usage["seconds"]
    with largest_file(10):
        assert service.client.post(ROUTE, json=BODY).status_code == 503
    service.draw(response_format="b64_json")
    report = service.client.get("/v1/accounting?latest=3").json()
    none, failed, done = report["latest"]
    assert (none["store_seconds"], none["stored_bytes"]) == (0, 0)
    assert failed["store_seconds"] > 0 == failed["stored_bytes"]
    assert (done["store_seconds"], done["stored_bytes"]) == (usage["store_seconds"], sum(sizes))
    total = done["store_seconds"] + failed["store_seconds"]
    for sums in (report, report["accounts"][0]):
        assert sums["store_seconds"] == pytest.approx(total)
        assert sums["stored_bytes"] == sum(sizes)
    assert report["requests"]["failed"] == 1


def test_images_that_fail_are_not_stored(service: Service) -> None:
    service.link()  # after the warm-up image, which must not get the error
    service.backend.errors = [StageFailed()]
    assert service.client.post(ROUTE, json=BODY).status_code == 503
    assert len(stored_files(service.folder)) == 1


def test_the_key_is_the_services_own(service: Service) -> None:
    service.link()
    assert stat.S_IMODE((service.folder / KEY_NAME).stat().st_mode) == 0o600
