"""What a gateway promises: the terms that its images go with, and what is said of them at the end."""

from __future__ import annotations

import time
from bisect import insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from safelight.service.early_refusals import AskedImages, EarlyRefusals
from safelight.service.errors import PromiseRefused
from safelight.service.messages import DecodeResult, DenoiseForecast, PromiseTerms, RequestContext
from safelight.service.setting_types import replica_range
from safelight.service.settings import Settings
from safelight.service.usage.records import NO_PROMISE, Promise

WINDOW = 128  # requests whose seconds outside of the denoiser are kept
PRIOR_SECONDS = 0.1  # outside of the denoiser, as long as there are none


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks of its promise.

    Attributes:
        seconds: In which its images must be there, from its arrival; None: nothing is promised.
        is_default: Whether that is the service's own.
        priority: Images of a higher one go first.
        is_background: Whether nobody waits for them.
    """

    seconds: float | None = None
    is_default: bool = False
    priority: int = 0
    is_background: bool = False


NO_WISH = Wish(is_background=True)


class GatewayPromises:
    """The promises of one gateway.

    Args:
        settings: The service's settings.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._others: dict[str, RecentSeconds] = {}  # by model
        gateways, _ = replica_range("gateway_replicas", settings.gateway_replicas, min_replicas=1)
        self.refusals = EarlyRefusals(gateways)

    def wish(self, deadline_ms: int | None, priority: int | None) -> Wish:
        """What a request asks, with the service's default."""
        default = self._settings.promise_seconds or None
        if deadline_ms is None:
            return Wish(default, is_default=True, priority=priority or 0)
        return Wish(deadline_ms / 1000, priority=priority or 0)

    def terms(self, wish: Wish, model: str, elapsed: float, images: int) -> PromiseTerms:
        """The terms of the images of a request that arrived `elapsed` seconds ago."""
        due = None
        if wish.seconds is not None:
            margin = self.seconds_outside(model).quantile(self._settings.promise_probability)
            due = time.time() + wish.seconds - elapsed - margin
        return PromiseTerms(due, wish.is_default, wish.priority, wish.is_background, images)

    def admit(self, request: AskedImages, context: RequestContext) -> RequestContext:
        """The context of a request's images, after the cheap check. Raises `PromiseRefused`."""
        if context.terms is None or context.terms.due is None:
            return context
        now = time.monotonic()
        window = context.terms.due - time.time()
        patience = self.refusals.check(request, window, now)
        return replace(context, terms=replace(context.terms, seconds=window, patience=patience))

    def refused(self, request: AskedImages, context: RequestContext, error: PromiseRefused) -> None:
        """A denoiser has refused a request: others like it are refused here for a while."""
        if context.terms is not None and context.terms.due is not None:
            self.refusals.learn(request, context.terms.seconds, error, time.monotonic())

    def outcome(self, wish: Wish, model: str, seconds: float, results: Sequence[DecodeResult]) -> Promise:
        """What a request was told whose images are there after `seconds`; learns from it."""
        forecasts = [result.usage.forecast for result in results if result.usage.forecast is not None]
        if not forecasts:
            return NO_PROMISE
        outside = self.seconds_outside(model)
        expected = outside.median + max(forecast.forecast_seconds for forecast in forecasts)
        margin = outside.quantile(self._settings.promise_probability)
        longest = max(forecasts, key=lambda forecast: forecast.seconds)
        outside.add(max(0.0, seconds - longest.seconds))
        self._see(forecasts)
        if wish.seconds is None:
            return Promise(None, expected)
        promised = max(forecast.promised_seconds or 0.0 for forecast in forecasts) + margin
        return Promise(max(wish.seconds, promised) if wish.is_default else wish.seconds, expected)

    def _see(self, forecasts: Sequence[DenoiseForecast]) -> None:
        for forecast in forecasts:
            self.refusals.see(forecast.replica, time.monotonic())

    def seconds_outside(self, model: str) -> RecentSeconds:
        """The seconds of requests that they are not in the denoiser."""
        return self._others.setdefault(model, RecentSeconds())


class RecentSeconds:
    """The latest of some durations."""

    def __init__(self) -> None:
        self._values: deque[float] = deque([PRIOR_SECONDS], maxlen=WINDOW)
        self._sorted = [PRIOR_SECONDS]

    def add(self, seconds: float) -> None:
        if len(self._values) == WINDOW:
            self._sorted.remove(self._values[0])
        self._values.append(seconds)
        insort(self._sorted, seconds)

    @property
    def median(self) -> float:
        return self.quantile(0.5)

    def quantile(self, probability: float) -> float:
        return self._sorted[min(int(probability * len(self._sorted)), len(self._sorted) - 1)]
