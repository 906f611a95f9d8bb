"""Which texts are image stores, and which folders they name."""

from pathlib import Path

import pytest

from safelight.service.image_store.locations import BadLocation, check_location, folder_of, is_bucket


@pytest.mark.parametrize(
    "text",
    ["s3://bucket", "S3://bucket/a/b", "gs://bucket/a", "az://container/a", "abfss://c@account.example/a"],
)
def test_a_bucket_is_told_by_its_scheme(text: str) -> None:
    assert check_location(text) == text
    assert is_bucket(text)


@pytest.mark.parametrize(
    ("text", "folder"),
    [("/a/b", "/a/b"), ("file:///a/b", "/a/b"), ("file:///a%20b", "/a b"), ("/a%20b", "/a%20b")],
)
def test_a_folder_is_a_path_or_a_file_url(text: str, folder: str) -> None:
    assert check_location(text) == text
    assert not is_bucket(text)
    assert folder_of(text) == Path(folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("images", "absolute path"),
        ("./images", "absolute path"),
        ("file://images", "absolute path"),
        ("ftp://host/a", "s3://"),
        ("https://host/a", "s3://"),
        ("memory:///", "s3://"),
        ("s3://", "bucket"),
        ("s3:///a", "bucket"),
    ],
)
def test_other_texts_are_refused_with_what_is_allowed(text: str, says: str) -> None:
    with pytest.raises(BadLocation, match=says):
        check_location(text)


def test_the_default_is_the_users_folder_for_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert folder_of("") == Path("/home/someone/.local/share/safelight/images")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert folder_of("") == Path("/home/someone/.local/share/safelight/images")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert folder_of("") == Path("/data/safelight/images")
