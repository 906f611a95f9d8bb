"""Bodies that are compressed, or in another character set than UTF-8."""

import gzip
import json
import zlib
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from safelight.service.http.gateway import build_gateway
from safelight.service.settings import Settings
from tests.fakes import MODEL, FakeBackend
from tests.service.conftest import ROUTE
from tests.service.openapi_answers import check_answers

PROMPT = "ein Äpfel"
BODY = json.dumps({"prompt": PROMPT}, ensure_ascii=False)
UTF8 = BODY.encode()


@pytest.fixture(scope="module")
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture(scope="module")
def client(backend: FakeBackend) -> Iterator[TestClient]:
    with TestClient(build_gateway(backend, MODEL, Settings())) as client:
        check_answers(client)
        yield client


def raw_deflate(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(body) + compressor.flush()


# The body, its character set and its coding.
READ: dict[str, tuple[bytes, str, str]] = {
    "plain": (UTF8, "", ""),
    "byte order mark": (BODY.encode("utf-8-sig"), "", ""),
    "utf-16 with a mark": (BODY.encode("utf-16"), "", ""),
    "utf-16": (BODY.encode("utf-16-le"), "utf-16le", ""),
    "utf-16 that nobody names": (BODY.encode("utf-16-be"), "", ""),
    "latin-1": (BODY.encode("latin-1"), "ISO-8859-1", ""),
    "windows-1252": (BODY.encode("cp1252"), '"windows-1252"', ""),
    "gzip": (gzip.compress(UTF8), "utf-8", "gzip"),
    "x-gzip": (gzip.compress(UTF8), "", "X-GZIP"),
    "deflate": (zlib.compress(UTF8), "", "deflate"),
    "raw deflate": (raw_deflate(UTF8), "", "deflate"),
    "identity": (UTF8, "", "identity"),
    "twice": (gzip.compress(zlib.compress(UTF8)), "", "deflate, gzip"),
    "gzip of latin-1": (gzip.compress(BODY.encode("latin-1")), "latin-1", "gzip"),
}


def headers_of(charset: str, coding: str) -> dict[str, str]:
    content_type = f"application/json; charset={charset}" if charset else "application/json"
    return {"content-type": content_type} | ({"content-encoding": coding} if coding else {})


@pytest.mark.parametrize(("body", "charset", "coding"), READ.values(), ids=READ)
def test_a_body_is_read_in_the_encoding_that_it_names(
    client: TestClient, backend: FakeBackend, body: bytes, charset: str, coding: str
) -> None:
    response = client.post(ROUTE, content=body, headers=headers_of(charset, coding))
    assert response.status_code == 200, response.text
    assert backend.drawn[-1][0].prompt == PROMPT


REFUSED: dict[str, tuple[bytes, str, str, int, str]] = {
    "cut": (gzip.compress(UTF8)[:-3], "", "gzip", 400, "is cut off"),
    "more behind it": (gzip.compress(UTF8) + b"x", "", "gzip", 400, "more follows it"),
    "not gzip": (UTF8, "", "gzip", 400, "not valid gzip"),
    "not deflate": (UTF8, "", "deflate", 400, "not valid deflate"),
    "empty": (b"", "", "gzip", 400, "cut off"),
    "latin-1 unnamed": (BODY.encode("latin-1"), "", "", 400, "not text in utf-8"),
    "ascii": (UTF8, "us-ascii", "", 400, "not text in ascii"),
    "brotli": (UTF8, "", "br", 415, "allowed: gzip, deflate, or none."),
    "three codings": (UTF8, "", "gzip, gzip, gzip", 415, "allowed: gzip"),
    "charset unknown": (UTF8, "klingon", "", 415, "charset 'klingon' is not supported"),
    "charset of bytes": (zlib.compress(UTF8), "zlib", "", 415, "charset 'zlib' is not supported"),
    "charset punycode": (UTF8, "punycode", "", 415, "is not supported"),
}


@pytest.mark.parametrize(("body", "charset", "coding", "status", "message"), REFUSED.values(), ids=REFUSED)
def test_an_encoding_that_cannot_be_read_is_refused(
    client: TestClient, body: bytes, charset: str, coding: str, status: int, message: str
) -> None:
    response = client.post(ROUTE, content=body, headers=headers_of(charset, coding))
    assert response.status_code == status, response.text
    assert message in response.json()["error"]["message"]


@pytest.mark.parametrize("coding", ["gzip", "gzip, gzip"])
def test_the_limit_holds_after_decompression(coding: str) -> None:
    client = TestClient(build_gateway(FakeBackend(), MODEL, Settings(max_body_bytes=10_000)))
    check_answers(client)
    for size, status in ((10_000, 200), (10_001, 413)):
        body = UTF8 + b" " * (size - len(UTF8))
        for _ in coding.split(","):
            body = gzip.compress(body)
        assert len(body) < 1000
        assert client.post(ROUTE, content=body, headers=headers_of("", coding)).status_code == status
