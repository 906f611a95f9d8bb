"""Refuses at the gateway what the denoisers would refuse, and tells each caller another time to come again.

A denoiser's refusal says for how long requests like it will be refused; until then, a gateway does not ask
again. Refused callers are lined up: each is told a time at which the device has room for its images. One who
comes at that time, with the same request, goes before those who come for the first time.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field

from safelight.service.errors import PromiseRefused

SEEN_SECONDS = 10.0  # for which a denoiser is known after it has said something
SAME_WINDOW = 1.02  # times as patient is as patient: what is taken off a promise varies a little
MAX_BARS = 8  # of one denoiser and caller
MAX_CALLERS = 1_000  # with bars at one denoiser
# A refusal holds at least this part of the request's seconds: a queue that is as long does not run empty.
HELD_PART = 0.03
MAX_BOOKINGS = 10_000
MAX_WAIT_SECONDS = 300.0
EARLY_SECONDS = 0.5  # how much too early one may come
GRACE_SECONDS = 3.0  # after which one is not expected any more
# The part of a promise's seconds that requests may fill which come for the first time, while others are
# expected.
FRESH_PART = 0.6
RETURN_RATE = 0.05  # weight of the latest booking in the share of those who come
MIN_RETURNING = 0.1  # least share that is reckoned with


@dataclass(frozen=True, slots=True)
class AskedImages:
    """What tells requests apart here.

    Attributes:
        model: Id of its model.
        caller: Whose it is.
        digest: Of what was sent.
        cost: Of an image, in any unit that grows with its work.
        images: How many it asks for.
    """

    model: str
    caller: str
    digest: str
    cost: float
    images: int = 1


@dataclass(frozen=True, slots=True)
class _Bar:
    """A refusal: requests that cost as much or more, and wait no longer, are refused until then."""

    cost: float
    window: float
    until: float
    # Of the refusal; the exception itself would keep its frames, and so the request.
    message: str
    promised: float
    forecast: float
    work: float


@dataclass(slots=True)
class _Denoiser:
    """One that has answered lately."""

    answered: float
    bars: dict[tuple[str, str], list[_Bar]] = field(default_factory=dict)  # by model and caller


class EarlyRefusals:
    """The refusals of one gateway. Times are seconds by `time.monotonic`.

    Args:
        gateways: How many of them share the denoisers.
    """

    def __init__(self, gateways: int = 1):
        self._gateways = gateways
        self._denoisers: dict[str, _Denoiser] = {}
        self._bookings: OrderedDict[tuple[str, str], float] = OrderedDict()  # when each is expected
        self._next_slot: dict[str, float] = {}  # by model
        self._returning = 1.0  # share of the refused who come when they are told

    def see(self, replica: str, now: float) -> None:
        """A denoiser has answered."""
        if (denoiser := self._denoisers.get(replica)) is None:
            self._denoisers[replica] = _Denoiser(now)
        else:
            denoiser.answered = now

    def check(self, request: AskedImages, window: float, now: float) -> float:
        """Let a request through to the denoisers, or refuse it.

        Args:
            request: The request.
            window: Seconds that a denoiser has for it.
            now: The time.

        Returns:
            The part of `window` that waiting may take up.

        Raises:
            PromiseRefused: Every denoiser has refused such requests.
        """
        self._expire(now)
        key = request.caller, request.digest
        if now >= self._bookings.get(key, math.inf) - EARLY_SECONDS:
            del self._bookings[key]
            self._returning += RETURN_RATE * (1.0 - self._returning)
            return 1.0
        denoisers = self._denoisers.values()
        bars = [self._bar(denoiser, request, window, now) for denoiser in denoisers]
        if bars and all(bars):
            first = min((bar for bar in bars if bar is not None), key=lambda bar: bar.until)
            work = first.work * request.cost / first.cost
            retry = self._book(request, first.until - now, work, now)
            raise PromiseRefused(first.message, first.promised, first.forecast, retry, work)
        return FRESH_PART if self._bookings else 1.0

    def learn(self, request: AskedImages, window: float, error: PromiseRefused, now: float) -> None:
        """A denoiser has refused a request; sets in `error` when to come again."""
        self.see(error.replica, now)
        all_bars = self._denoisers[error.replica].bars
        key = request.model, request.caller
        bars = [bar for bar in all_bars.pop(key, ()) if bar.until > now][-MAX_BARS + 1 :]
        until = now + max(error.retry_seconds, HELD_PART * window)
        forecast = error.promised_seconds, error.forecast_seconds, error.work_seconds
        all_bars[key] = [*bars, _Bar(request.cost, window, until, str(error), *forecast)]
        if len(all_bars) > MAX_CALLERS:
            del all_bars[next(iter(all_bars))]
        error.set_retry(self._book(request, error.retry_seconds, error.work_seconds, now))

    def _book(self, request: AskedImages, retry: float, work: float, now: float) -> float:
        """Expect a request again; returns in how many seconds."""
        key = request.caller, request.digest
        seconds = request.images * work * self._gateways * self._returning / max(1, len(self._denoisers))
        slot = self._bookings.pop(key, None)
        if slot is None or slot <= now:
            slot = max(now + retry, self._next_slot.get(request.model, now))
            slot = min(slot, now + MAX_WAIT_SECONDS)
            self._next_slot[request.model] = slot + seconds
        self._bookings[key] = slot
        if len(self._bookings) > MAX_BOOKINGS:
            self._bookings.popitem(last=False)
        return slot - now

    def _expire(self, now: float) -> None:
        """Forget denoisers that are silent, and bookings of those who have not come."""
        silent = [
            name for name, denoiser in self._denoisers.items() if now - denoiser.answered > SEEN_SECONDS
        ]
        for name in silent:
            del self._denoisers[name]
        while self._bookings:
            key, slot = next(iter(self._bookings.items()))
            if now <= slot + GRACE_SECONDS:
                break
            del self._bookings[key]
            self._returning = max(MIN_RETURNING, (1.0 - RETURN_RATE) * self._returning)

    def _bar(self, denoiser: _Denoiser, request: AskedImages, window: float, now: float) -> _Bar | None:
        """What keeps a request from a denoiser."""
        for bar in denoiser.bars.get((request.model, request.caller), ()):
            if bar.until > now and request.cost >= bar.cost and window <= SAME_WINDOW * bar.window:
                return bar
        return None
