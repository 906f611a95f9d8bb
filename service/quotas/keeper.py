"""Holds requests to the limits of their keys: reserves what they will use, settles what they have used."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from safelight.pipeline.params import GenerationParams
from safelight.service.errors import LimitReached
from safelight.service.keys.api_key import ApiKey
from safelight.service.messages import ImageUsage
from safelight.service.quotas.counters import Counter, Counters
from safelight.service.quotas.forecast import DeviceSecondsForecast
from safelight.service.quotas.periods import (
    DEVICE_SECONDS,
    IMAGES,
    SPEND,
    Period,
    Quota,
    format_time,
    quotas_of,
)

RATE_CODE = "rate_limit_exceeded"
QUOTA_CODE = "insufficient_quota"


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """A limit after a request was counted, for the headers of its answer."""

    resource: str  # requests, images, device-seconds or spend
    limit: float
    remaining: float
    seconds: float  # until it frees


@dataclass(frozen=True, slots=True)
class Use:
    """What a request uses of a key's quotas."""

    images: int = 0
    device_seconds: float = 0.0


@dataclass(slots=True)
class Reservation:
    """What was counted for a request that is under way.

    Attributes:
        key: Whose it is.
        use: What is reserved, as it was forecast.
        counters: The counters that hold it, each with its quota.
    """

    key: ApiKey
    use: Use
    counters: list[tuple[Quota, Counter]] = field(default_factory=list)


class QuotaKeeper:
    """Counts the requests of keys, and what they use.

    Args:
        counters: Where.
        price_per_device_hour: From which spend is computed.
        clock: Returns the current Unix time.
    """

    def __init__(
        self, counters: Counters, price_per_device_hour: float, clock: Callable[[], float] = time.time
    ):
        self.forecast = DeviceSecondsForecast()
        self._counters = counters
        self._price = price_per_device_hour / 3600.0
        self._clock = clock

    async def count_request(self, key: ApiKey, statuses: list[LimitStatus]) -> None:
        """Count one request of `key`, if these are limited; `statuses` gets the limit.

        Raises `LimitReached`.
        """
        limit = key.spec.limits.requests_per_minute
        if limit is None:
            return
        window = await self._counters.hit(key.id, limit)
        statuses.append(LimitStatus("requests", limit, window.remaining, window.seconds))
        if not window.is_admitted:
            frees = format_time(math.ceil(self._clock() + window.seconds))
            raise LimitReached(
                f"The limit requests_per_minute of this API key is reached: {limit} in a minute. "
                f"It frees at {frees}.",
                RATE_CODE,
                window.seconds,
            )

    async def reserve(
        self, key: ApiKey, model: str, images: Sequence[GenerationParams], statuses: list[LimitStatus]
    ) -> Reservation:
        """Reserve what drawing `images` by `model` will use of the quotas of `key`; `statuses` gets these.

        Raises `LimitReached`, and then nothing is reserved.
        """
        use = Use(len(images), self.forecast.seconds(model, images))
        reservation = Reservation(key, use)
        now = self._clock()
        for quota, limit in quotas_of(key.spec.limits):
            period = Period.of(quota, now)
            counter = Counter(key.id, quota.resource, period.name, period.ends)
            amount = self._amount(quota, use)
            total = await self._counters.add(counter, amount)
            reservation.counters.append((quota, counter))
            capacity = round(limit * quota.scale)
            remaining = max(0, capacity - total) / quota.scale
            statuses.append(LimitStatus(quota.resource, limit, remaining, period.ends - now))
            if total > capacity:
                await self.settle(reservation, Use())
                before = (total - amount) / quota.scale
                sentence = _sentence(quota, limit, before, amount / quota.scale, period)
                raise LimitReached(sentence, QUOTA_CODE, period.ends - now)
        return reservation

    async def settle(self, reservation: Reservation, use: Use) -> None:
        """Count what a request has really used, in place of what was reserved for it."""
        for quota, counter in reservation.counters:
            change = self._amount(quota, use) - self._amount(quota, reservation.use)
            if change:
                await self._counters.add(counter, change)
        reservation.counters.clear()

    def _amount(self, quota: Quota, use: Use) -> int:
        amounts = {
            IMAGES: float(use.images),
            DEVICE_SECONDS: use.device_seconds,
            SPEND: use.device_seconds * self._price,
        }
        return math.ceil(amounts[quota] * quota.scale - 1e-6)


def use_of(reserved: Use, usages: Sequence[ImageUsage], seconds: float, has_ended_early: bool) -> Use:
    """What a request has used.

    The stages tell the gateway what an image took when it is done. Of a request whose caller went away it is
    not known there: it is charged what was forecast, at most the seconds that it was under way, for each of
    its images.

    Args:
        reserved: What was forecast.
        usages: Of the images that were sent.
        seconds: That the request took.
        has_ended_early: Whether its caller ended it.
    """
    device_seconds = sum(cost.device_seconds for usage in usages for cost in usage.stages.values())
    if has_ended_early:
        device_seconds = max(device_seconds, min(reserved.device_seconds, seconds * reserved.images))
    return Use(len(usages), device_seconds)


def _sentence(quota: Quota, limit: float, before: float, amount: float, period: Period) -> str:
    return (
        f"The limit {quota.limit} of this API key is reached: {before:g} of {limit:g} used or in use in "
        f"{period.name}, and the request needs {amount:g}. It frees at {format_time(period.ends)}."
    )
