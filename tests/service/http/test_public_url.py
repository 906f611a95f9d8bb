"""The URL that links begin with: the operator's, the proxies' or the request's, and never anything else."""

import pytest
from starlette.requests import Request

from safelight.service.http.public_url import base_url
from safelight.service.settings import Settings


def request(scheme: str = "http", root_path: str = "", **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "scheme": scheme, "path": "/", "query_string": b"", "headers": raw}
    return Request(scope | {"root_path": root_path, "server": ("10.0.0.1", 8000)})


@pytest.mark.parametrize(
    ("headers", "url"),
    [
        ({"host": "here:8000"}, "http://here:8000"),
        ({"host": "[::1]:8000"}, "http://[::1]:8000"),
        ({"host": "here", "x_forwarded_proto": "https"}, "https://here"),
        ({"host": "here", "x_forwarded_host": "example.org"}, "http://example.org"),
        ({"host": "here", "x_forwarded_host": "example.org, proxy"}, "http://example.org"),
        (
            {
                "x_forwarded_host": "b",
                "x_forwarded_proto": "HTTPS, http",
                "x_forwarded_prefix": "/p/",
            },
            "https://b",
        ),
    ],
)
def test_the_request_says_how_it_came(headers: dict[str, str], url: str) -> None:
    assert base_url(request(**headers), Settings()) == url


def test_the_scheme_and_the_path_in_front_are_the_requests() -> None:
    assert base_url(request("https", "/images", host="here"), Settings()) == "https://here/images"


def test_the_setting_comes_first() -> None:
    settings = Settings(public_url="https://example.org/images/")
    sent = request(host="here", x_forwarded_host="evil.org")
    assert base_url(sent, settings) == "https://example.org/images"


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a b",
        "evil.org/a",
        "user@evil.org",
        "a\\b",
        "a:80:90",
        "a:port",
        "a?b",
        "a#b",
        "é",
        "-",
        "x" * 256,
    ],
)
def test_what_is_no_host_is_not_believed(host: str) -> None:
    assert base_url(request(host="here", x_forwarded_host=host), Settings()) == "http://here"
    settings = Settings(host="127.0.0.1", port=8123)
    assert base_url(request(host=host), settings) == "http://127.0.0.1:8123"


def test_an_ipv6_address_of_the_service_is_in_brackets() -> None:
    assert base_url(request(), Settings(host="::1")) == "http://[::1]:8000"


def test_what_is_no_scheme_is_left_out() -> None:
    assert base_url(request(host="here", x_forwarded_proto="javascript"), Settings()) == "http://here"


@pytest.mark.parametrize("path", ["//evil.org", "/a/../b", "no-slash", "/a?b=c", "/" + "x" * 256])
def test_what_is_no_path_is_left_out(path: str) -> None:
    assert base_url(request(root_path=path, host="here"), Settings()) == "http://here"
