"""The names of stored images. A name says until when its link holds, and what bytes it stands for."""

import hashlib
import re
import secrets
from dataclasses import dataclass

TOKEN_BYTES = 8
DIGEST_BYTES = 16
# Names of other objects match nothing, so that the store neither answers nor deletes what it has not written.
PATTERN = re.compile(r"([0-9]{1,12})-([0-9a-f]{16})-([0-9a-f]{32})\.(png|webp|jpeg)")


@dataclass(frozen=True, slots=True)
class ImageName:
    """The name of one stored image, unique even for equal images."""

    expires: int  # Unix time at which its link ends and it may be deleted
    token: str  # random, or of a job and the image's place in it
    digest: str  # of its bytes
    format: str

    @classmethod
    def make(cls, image: bytes, format: str, expires: int) -> "ImageName":
        """A new name for an image whose link holds until `expires`."""
        return cls(expires, secrets.token_hex(TOKEN_BYTES), _digest(image), format)

    @classmethod
    def of_job(cls, image: bytes, format: str, expires: int, job_id: str, index: int) -> "ImageName":
        """The name of an image of a job: the same for the same bytes, however often they are drawn."""
        token = hashlib.sha256(f"{job_id} {index}".encode()).hexdigest()[: 2 * TOKEN_BYTES]
        return cls(expires, token, _digest(image), format)

    @classmethod
    def parse(cls, text: str) -> "ImageName | None":
        """The name that `text` spells; None if it is no name of a stored image."""
        match = PATTERN.fullmatch(text)
        if match is None:
            return None
        expires, token, digest, format = match.groups()
        name = cls(int(expires), token, digest, format)
        return name if str(name) == text else None  # no leading zeros: one spelling for each name

    def __str__(self) -> str:
        return f"{self.expires}-{self.token}-{self.digest}.{self.format}"

    @property
    def media_type(self) -> str:
        return f"image/{self.format}"

    def is_of(self, data: bytes) -> bool:
        """Whether `data` are the bytes that were stored under this name."""
        return _digest(data) == self.digest


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[: 2 * DIGEST_BYTES]
