"""Signed links: which image, and until when."""

import base64
import hashlib
import hmac
from urllib.parse import urlencode

PURPOSE = "safelight image link"  # the same key signs nothing else


class LinkSigner:
    """Signs links with a key that all gateways share."""

    def __init__(self, key: bytes):
        self._key = key

    def query(self, name: str, expires: int) -> str:
        """The query string of the link to the image `name` that holds until `expires`."""
        return urlencode({"expires": expires, "signature": self._signature(name, expires)})

    def is_valid(self, name: str, expires: int, signature: str) -> bool:
        """Whether `signature` was made for this name and time; it may have expired."""
        return hmac.compare_digest(self._signature(name, expires).encode(), signature.encode())

    def _signature(self, name: str, expires: int) -> str:
        message = f"{PURPOSE}\n{name}\n{expires}".encode()
        digest = hmac.digest(self._key, message, hashlib.sha256)
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
