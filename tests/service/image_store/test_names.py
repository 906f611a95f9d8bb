"""The names of stored images, and the signatures of their links."""

import pytest

from safelight.service.image_store.links import LinkSigner
from safelight.service.image_store.names import ImageName

NAME = ImageName.make(b"image", "png", 1_700_000_000)
TEXT = str(NAME)


def test_a_name_is_read_back() -> None:
    assert ImageName.parse(TEXT) == NAME
    assert TEXT.startswith("1700000000-") and TEXT.endswith(".png")


def test_equal_images_have_names_of_their_own() -> None:
    other = ImageName.make(b"image", "png", 1_700_000_000)
    assert other.digest == NAME.digest and str(other) != TEXT


def test_a_name_stands_for_its_bytes_only() -> None:
    assert NAME.is_of(b"image")
    assert not NAME.is_of(b"imagE")


@pytest.mark.parametrize("format", ["png", "webp", "jpeg"])
def test_the_media_type_is_that_of_the_format(format: str) -> None:
    assert ImageName.make(b"", format, 1).media_type == f"image/{format}"


BAD_NAMES = {
    "empty": "",
    "the key": "link-key",
    "another file": "cat.png",
    "a folder above": f"../{TEXT}",
    "a folder below": f"images/{TEXT}",
    "another case": TEXT.upper(),
    "another format": TEXT.replace(".png", ".svg"),
    "a suffix": f"{TEXT}#1",
    "a line": f"{TEXT}\n",
    "a null byte": f"{TEXT}\0",
    "leading zeros": f"0{TEXT}",
    "other digits": TEXT.replace("1", "١"),
}


@pytest.mark.parametrize("text", BAD_NAMES.values(), ids=BAD_NAMES)
def test_what_the_store_has_not_named_is_no_name(text: str) -> None:
    assert ImageName.parse(text) is None


def query(signer: LinkSigner, name: str, expires: int) -> dict[str, str]:
    return dict(part.split("=") for part in signer.query(name, expires).split("&"))


def test_a_signature_holds_for_its_name_time_and_key_only() -> None:
    signer = LinkSigner(b"key")
    fields = query(signer, TEXT, 1_700_000_000)
    signature = fields["signature"]
    assert fields["expires"] == "1700000000"
    assert signer.is_valid(TEXT, 1_700_000_000, signature)
    assert not signer.is_valid(TEXT, 1_700_000_001, signature)
    assert not signer.is_valid(TEXT.replace("1700000000", "1700000001"), 1_700_000_000, signature)
    assert not LinkSigner(b"kez").is_valid(TEXT, 1_700_000_000, signature)
    for wrong in ("", signature[:-1], signature + "=", signature.swapcase(), "é" * len(signature)):
        assert not signer.is_valid(TEXT, 1_700_000_000, wrong)


def test_name_and_time_are_told_apart() -> None:
    """No signature of one pair is that of another whose characters are the same."""
    signer = LinkSigner(b"key")
    assert query(signer, "a\n1", 2)["signature"] != query(signer, "a", 12)["signature"]
    assert query(signer, "a1", 2)["signature"] != query(signer, "a", 12)["signature"]


def test_a_query_needs_no_escapes() -> None:
    signer = LinkSigner(b"key")
    for number in range(50):
        assert "%" not in signer.query(TEXT, number)
