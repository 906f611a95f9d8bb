"""Bodies of requests for edits that clients send by mistake or by malice, and what each is answered."""

from tests.service.http.uploads import as_json, data_url

FORM = {"prompt": "a red apple"}


def multipart(parts: list[tuple[str, bytes]], end: bytes = b"--X--\r\n") -> bytes:
    """A form with the boundary X, whose parts have any headers."""
    return b"".join(b"--X\r\n" + head.encode() + b"\r\n\r\n" + body + b"\r\n" for head, body in parts) + end


TEXT_PART = ('content-disposition: form-data; name="prompt"', b"a red apple")
FILE_PART = ('content-disposition: form-data; name="image"; filename="a.png"', b"file")

# The body, and the status and field of the answer.
BAD_BODIES: dict[str, tuple[bytes, int, str | None]] = {
    "no image": (as_json(FORM), 400, "image"),
    "no prompt": (as_json({"image": data_url(b"x")}), 400, "prompt"),
    "two images": (as_json(FORM | {"images": [data_url(b"a"), data_url(b"b")]}), 400, "image"),
    "two masks": (as_json(FORM | {"image": "QQ==", "mask": ["QQ==", "QQ=="]}), 400, "mask"),
    "an address": (as_json(FORM | {"image": "https://example.org/a.png"}), 400, "image"),
    "a file's address": (as_json(FORM | {"image": "file:///etc/passwd"}), 400, "image"),
    "a file's id": (as_json(FORM | {"images": [{"file_id": "file-1"}]}), 400, "image"),
    "an empty object": (as_json(FORM | {"image": {}}), 400, "image"),
    "a number": (as_json(FORM | {"image": 3}), 400, "image"),
    "no base64": (as_json(FORM | {"image": "data:image/png;base64,?"}), 400, "image"),
    "data without base64": (as_json(FORM | {"image": "data:image/png,abc"}), 400, "image"),
    "strength of 2": (as_json(FORM | {"image": "QQ==", "strength": 2}), 400, "strength"),
    "strength in words": (as_json(FORM | {"image": "QQ==", "strength": "high"}), 400, "strength"),
    "strength in odd text": (as_json(FORM | {"image": "QQ==", "strength": "0_5"}), 400, "strength"),
    "a second strength": (
        as_json(FORM | {"image": "QQ==", "strength": 0.5, "denoising_strength": 3}), 400,
        "denoising_strength",
    ),
    "a list without an image": (as_json(FORM | {"image": [None]}), 400, "image"),
    "strength true": (as_json(FORM | {"image": "QQ==", "strength": True}), 400, "strength"),
    "strength NaN": (b'{"prompt": "a", "image": "QQ==", "strength": NaN}', 400, "strength"),
    "strength of 2 in a wrapper": (
        as_json(FORM | {"image": "QQ==", "extra_body": {"strength": 2}}), 400, "extra_body.strength",
    ),
    "fidelity": (as_json(FORM | {"image": "QQ==", "input_fidelity": "max"}), 400, "input_fidelity"),
    "no json": (b"{", 400, None),
    "a list": (b"[]", 400, None),
    "deeply nested": (b"[" * 100_000, 400, None),
}  # fmt: skip

# The body, and a part of the answer, which is 400.
BAD_FORMS: dict[str, tuple[bytes, str]] = {
    "truncated in a file": (multipart([TEXT_PART, FILE_PART])[:-20], "ends before its last boundary"),
    "without its last boundary": (multipart([TEXT_PART, FILE_PART], b""), "ends before its last boundary"),
    "empty": (b"", "ends before its last boundary"),
    "no form": (b'{"prompt": "a"}', "not a valid form"),
    "another boundary": (multipart([TEXT_PART]).replace(b"--X", b"--Y"), "not a valid form"),
    "a part without a name": (multipart([("content-disposition: form-data", b"a")]), "not a valid form"),
    "too many files": (multipart([TEXT_PART] + [FILE_PART] * 18), "Too many files"),
    "too many fields": (multipart([TEXT_PART] * 101), "Too many fields"),
    "a broken header": (multipart([("no colon here", b"a")]), "not a valid form"),
}
