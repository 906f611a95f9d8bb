"""Files of hashed keys: what they may hold, and complaints that repeat nothing secret."""

import json
from pathlib import Path

import pytest

from safelight.service.keys.api_key import ApiKey, KeyLimits, KeySpec, StoredSecret
from safelight.service.keys.key_file import BadKeyFile, describe_entry, read_key_file
from safelight.service.keys.secrets import hash_secret, prefix_of

SECRET = f"sk-{'aB3_' * 10}xyz"  # the same in every process: tests are named after it
STORED = StoredSecret(prefix_of(SECRET), hash_secret(SECRET))
ENTRY = describe_entry(KeySpec("alice"), STORED)
HASHES = ENTRY["secrets"]


def test_an_entry_comes_back_as_it_was_described(tmp_path: Path) -> None:
    spec = KeySpec("bob", 2.0, 1, KeyLimits(1, 2, 3.5, 4.5), ("a",), 2e9)
    rotated = describe_entry(spec, StoredSecret("sk-abcdefgh", bytes(32)))
    rotated["secrets"] += [{"prefix": "sk-ijklmnop", "sha256": 64 * "f", "ends": 1.9e9}]
    first, second = _read(tmp_path, ENTRY, rotated)
    assert (first.spec, first.secrets) == (KeySpec("alice"), (STORED,))
    assert second.spec == spec
    assert [(secret.prefix, secret.ends) for secret in second.secrets] == [
        ("sk-abcdefgh", None),
        ("sk-ijklmnop", 1.9e9),
    ]
    assert first.id != second.id and first.id == _read(tmp_path, ENTRY)[0].id  # by its name


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not JSON of the form"),
        ("[]", "is not JSON of the form"),
        ('{"keys": 5}', "keys must be a list"),
        (json.dumps({"keys": [5]}), "key 1 must be an object"),
        (json.dumps({"keys": [{"name": "a"}]}), "key 1: secrets must be a list"),
        (json.dumps({"keys": [{"secrets": HASHES}]}), "key 1: name must be text"),
        (json.dumps({"keys": [ENTRY | {"weight": 0}]}), "key 1: weight must be more than 0"),
        (json.dumps({"keys": [ENTRY | {"colour": 0}]}), "key 1: colour is not a field of a key"),
        (json.dumps({"keys": [ENTRY | {"secrets": [SECRET]}]}), "key 1: prefix must be the first 11"),
        (
            json.dumps({"keys": [ENTRY | {"secrets": [HASHES[0] | {"sha256": SECRET}]}]}),
            "key 1: sha256 must be 64 hexadecimal digits",
        ),
        (
            json.dumps({"keys": [ENTRY | {"secrets": [HASHES[0] | {"ends": "soon"}]}]}),
            "key 1: ends must be a Unix time",
        ),
        (json.dumps({"keys": [ENTRY, ENTRY | {"name": "bob"}]}), "two keys have the same secret"),
        (json.dumps({"keys": [ENTRY, ENTRY]}), "two keys have the same name"),
    ],
)
def test_a_bad_file_is_refused_without_its_secrets(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(BadKeyFile, match=complaint) as refusal:
        read_key_file(path)
    assert SECRET not in str(refusal.value) and hash_secret(SECRET).hex() not in str(refusal.value)


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadKeyFile, match="cannot be read: No such file"):
        read_key_file(tmp_path / "nothing")


def _read(folder: Path, *entries: object) -> list[ApiKey]:
    (folder / "keys.json").write_text(json.dumps({"keys": entries}))
    return read_key_file(folder / "keys.json")
