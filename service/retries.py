"""How often an image is sent again after a stage was lost with it, and how often all images together."""

from dataclasses import dataclass

from safelight.service.errors import PoisonedRequest, StageLost

MAX_RETRIES = 3  # of one image
SUSPECT_LOSSES = 2  # losses of the denoiser after which an image is drawn alone
DENOISER = "denoise"


@dataclass
class Losses:
    """The losses of stages that one image has been through."""

    total: int = 0
    of_denoiser: int = 0

    @property
    def is_suspect(self) -> bool:
        """Whether the image may be what the denoiser dies of."""
        return self.of_denoiser >= SUSPECT_LOSSES

    def add(self, lost: StageLost) -> None:
        """Count a loss.

        Raises:
            PoisonedRequest: The denoiser was lost while it drew nothing but this image.
            StageLost: The image was sent often enough.
        """
        if lost.stage == DENOISER:
            if self.is_suspect:
                raise PoisonedRequest()
            self.of_denoiser += 1
        self.total += 1
        if self.total > MAX_RETRIES:
            raise lost


class RetryBudget:
    """A token bucket: images may be sent again as long as it has tokens, one each.

    It keeps a service that loses its stages again and again from spending all its time on retries.

    Args:
        capacity: Tokens that it holds, and has at the start.
        refill_seconds: In which an empty bucket is full again.
    """

    def __init__(self, capacity: float, refill_seconds: float):
        self._capacity = self._tokens = capacity
        self._rate = capacity / refill_seconds
        self._updated = 0.0

    def take(self, now: float) -> bool:
        """Take a token at the time `now` in seconds; returns whether there was one."""
        elapsed = max(0.0, now - self._updated)
        self._tokens, self._updated = min(self._capacity, self._tokens + self._rate * elapsed), now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
