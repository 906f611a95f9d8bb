"""Quotas and the periods that they are of: days and months of UTC."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from safelight.service.keys.api_key import KeyLimits


@dataclass(frozen=True, slots=True)
class Quota:
    """How much may be used in a period.

    Attributes:
        limit: The field of `KeyLimits`.
        resource: What is counted, as in `x-ratelimit-limit-images`.
        is_monthly: Whether a period is a month, and not a day.
        scale: In how many parts one of it is counted: counters hold whole numbers.
    """

    limit: str
    resource: str
    is_monthly: bool
    scale: int


IMAGES = Quota("images_per_day", "images", is_monthly=False, scale=1)
DEVICE_SECONDS = Quota("device_seconds_per_day", "device-seconds", is_monthly=False, scale=1_000)
SPEND = Quota("spend_per_month", "spend", is_monthly=True, scale=1_000_000)
QUOTAS = (IMAGES, DEVICE_SECONDS, SPEND)


@dataclass(frozen=True, slots=True)
class Period:
    """A day or a month."""

    name: str  # 2026-11-30, or 2026-11
    ends: float  # Unix time

    @classmethod
    def of(cls, quota: Quota, now: float) -> "Period":
        """The period of a quota at `now`."""
        day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if not quota.is_monthly:
            return cls(day.strftime("%Y-%m-%d"), (day + timedelta(days=1)).timestamp())
        following = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
        return cls(day.strftime("%Y-%m"), following.timestamp())


def quotas_of(limits: KeyLimits) -> Iterator[tuple[Quota, float]]:
    """The quotas that a key has, each with its limit."""
    for quota in QUOTAS:
        limit = getattr(limits, quota.limit)
        if limit is not None:
            yield quota, limit


def format_time(seconds: float) -> str:
    """A Unix time as `2026-12-01T00:00:00Z`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_duration(seconds: float) -> str:
    """Seconds as OpenAI's headers have them: `350ms`, `7s`, `2m5s`, `13h0m5s`."""
    if seconds < 1:
        return f"{max(0, round(1000 * seconds))}ms"
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    text = f"{whole % 60}s"
    if whole >= 60:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text
