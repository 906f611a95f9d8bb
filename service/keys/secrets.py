"""The secret of a key: `sk-` and 256 random bits. It is shown once; only its SHA-256 is kept.

A random secret needs no slow hash: nobody tries 2**256 of them.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable
from hmac import compare_digest

PREFIX_CHARACTERS = 11  # of a secret, `sk-` included: by them its hash is found, and a person knows it again
SECRET_BYTES = 32
SECRET = re.compile(r"sk-[A-Za-z0-9_-]{43}", re.ASCII)
MASK = "sk-***"
_NO_DIGEST = bytes(32)  # in place of a hash where there is none


def make_secret() -> str:
    return f"sk-{secrets.token_urlsafe(SECRET_BYTES)}"


def is_secret(text: str) -> bool:
    """Whether `text` has the form of a secret."""
    return SECRET.fullmatch(text) is not None


def hash_secret(secret: str) -> bytes:
    """The SHA-256 of a secret."""
    return hashlib.sha256(secret.encode()).digest()


def prefix_of(secret: str) -> str:
    """The part of a secret that may be shown."""
    return secret[:PREFIX_CHARACTERS]


def find_digest(digest: bytes, candidates: Iterable[bytes]) -> int | None:
    """The index of `digest` among `candidates`, those with the same prefix.

    The work depends on the number of candidates alone: every one is compared, in constant time, and without
    any a stand-in is.
    """
    index = None
    digests = tuple(candidates)
    for k, candidate in enumerate(digests or (_NO_DIGEST,)):
        if compare_digest(candidate, digest):
            index = k
    return index if digests else None


def mask_secrets(text: str) -> str:
    """`text` with every secret in it replaced."""
    return SECRET.sub(MASK, text) if "sk-" in text else text
