"""Decides from what is observed of a running service whether it serves, will serve again, or is lost."""

from dataclasses import dataclass, field

from safelight.service.runtime.readiness import ReadinessAnswer

HEAL_SECONDS = 300.0  # in which Serve must have replaced what has failed; a large model loads for minutes
SILENT_SECONDS = 45.0  # after which Ray or Serve, if they have told nothing, replace nothing any more


@dataclass
class ServiceHealth:
    """The health of a service that has been ready.

    Args:
        now: The time at which it was ready.
    """

    now: float
    _beat_at: float = field(init=False)
    _lost_at: float | None = field(init=False, default=None)
    _failure: str = field(init=False, default="")
    _answer: ReadinessAnswer | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._beat_at = self.now

    def beat(self, now: float, failure: str = "") -> None:
        """Note that Ray and Serve answer; `failure` is why a stage cannot be started again."""
        self._beat_at, self._failure = now, failure

    def observe(self, now: float, answer: ReadinessAnswer) -> str:
        """Note an answer of /readyz; returns a line for the log, empty if nothing has changed."""
        self._answer = answer
        if not answer.is_ready and self._lost_at is None:
            self._lost_at = now
            return f"not ready ({answer.text}); waiting for Ray Serve to replace what has failed"
        if answer.is_ready and self._lost_at is not None:
            seconds, self._lost_at = now - self._lost_at, None
            return f"ready again after {seconds:.0f} seconds"
        return ""

    def reason_to_end(self, now: float) -> str | None:
        """Why the service will not be ready again; None if it is or may be."""
        if self._lost_at is None or self._answer is None:
            return None
        if self._failure:
            return self._failure
        if self._answer.is_final:
            return f"the warm-up image failed: {self._answer.text}"
        if now > max(self._beat_at, self._lost_at - SILENT_SECONDS) + SILENT_SECONDS:
            return f"Ray has not answered for {now - self._beat_at:.0f} seconds: {self._answer.text}"
        if now > self._lost_at + HEAL_SECONDS:
            return f"not ready for {now - self._lost_at:.0f} seconds: {self._answer.text}"
        return None
