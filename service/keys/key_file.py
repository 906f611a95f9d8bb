"""Keys in a mounted file, which holds their hashes: for deployments that keep their configuration in files.

    {"keys": [{"name": "alice", "secrets": [{"prefix": "sk-...", "sha256": "..."}], "images_per_day": 100}]}

`safelight keys hash` writes an entry. Its fields are those of a key; a second secret, while the first one has
its `ends`, rotates.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safelight.service.keys.api_key import ApiKey, BadKey, KeySpec, StoredSecret, read_spec
from safelight.service.keys.secrets import PREFIX_CHARACTERS

MAX_BYTES = 16 << 20
DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
PREFIX = re.compile(rf"sk-[A-Za-z0-9_-]{{{PREFIX_CHARACTERS - 3}}}", re.ASCII)


class BadKeyFile(Exception):
    """A file that is no list of keys; the message says why and repeats none of its content but names."""


def read_key_file(path: Path) -> list[ApiKey]:
    """The keys in a file. Raises `BadKeyFile`."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise BadKeyFile(f"{path} is larger than {MAX_BYTES} bytes")
        entries = json.loads(content)["keys"]
    except OSError as error:
        raise BadKeyFile(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise BadKeyFile(f'{path} is not JSON of the form {{"keys": [...]}}') from None
    if not isinstance(entries, list):
        raise BadKeyFile(f"{path}: keys must be a list")
    keys = [_read_entry(path, k, entry) for k, entry in enumerate(entries)]
    for values, what in (
        ([key.spec.name for key in keys], "name"),
        ([secret.digest for key in keys for secret in key.secrets], "secret"),
    ):
        if len(set(values)) < len(values):
            raise BadKeyFile(f"{path}: two keys have the same {what}")
    return keys


def describe_entry(spec: KeySpec, secret: StoredSecret) -> dict[str, Any]:
    """The entry of a key in a file, without the fields that have their defaults."""
    values = ApiKey("", spec, ()).describe()
    defaults = ApiKey("", KeySpec("x"), ()).describe()
    chosen = {name: value for name, value in values.items() if value != defaults[name]}
    return chosen | {"secrets": [{"prefix": secret.prefix, "sha256": secret.digest.hex()}]}


def _read_entry(path: Path, index: int, entry: object) -> ApiKey:
    where = f"{path}: key {index + 1}"
    if not isinstance(entry, dict):
        raise BadKeyFile(f"{where} must be an object")
    secrets = entry.pop("secrets", None)
    try:
        spec = read_spec(entry)
    except BadKey as error:
        raise BadKeyFile(f"{where}: {error}") from None
    if not (isinstance(secrets, list) and secrets):
        raise BadKeyFile(f"{where}: secrets must be a list of objects with prefix and sha256")
    key_id = f"key_{hashlib.sha256(spec.name.encode()).hexdigest()[:16]}"
    return ApiKey(key_id, spec, tuple(_read_secret(where, secret) for secret in secrets))


def _read_secret(where: str, secret: object) -> StoredSecret:
    values: Mapping[str, Any] = secret if isinstance(secret, dict) else {}
    prefix, digest, ends = values.get("prefix"), values.get("sha256"), values.get("ends")
    if not (isinstance(prefix, str) and PREFIX.fullmatch(prefix)):
        raise BadKeyFile(f"{where}: prefix must be the first {PREFIX_CHARACTERS} characters of the secret")
    if not (isinstance(digest, str) and DIGEST.fullmatch(digest)):
        raise BadKeyFile(f"{where}: sha256 must be 64 hexadecimal digits in lower case")
    if ends is not None and (isinstance(ends, bool) or not isinstance(ends, int | float)):
        raise BadKeyFile(f"{where}: ends must be a Unix time in seconds")
    return StoredSecret(prefix, bytes.fromhex(digest), ends)
