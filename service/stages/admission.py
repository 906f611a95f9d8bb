"""Admission to a denoiser: decided as soon as an image's call arrives, before any work is spent on it.

The engine's thread keeps it up to date after every tick, and does not take part: a refusal waits for no tick.
"""

from __future__ import annotations

import itertools
import math
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from safelight.pipeline.params import NOT_URGENT, FinishReason, GenerationParams, Urgency
from safelight.pipeline.scheduling.promises import AdmissionControl, Demand, Forecast
from safelight.service.errors import DeadlineTooShort, PromiseRefused
from safelight.service.messages import DenoiseForecast, PromiseTerms, Quote, RequestContext

if TYPE_CHECKING:
    from safelight.pipeline.engine.engine import Engine, SampleOutcome
    from safelight.pipeline.engine.work_estimate import WorkEstimator

CERTAIN = PromiseTerms(is_certain=True)


@dataclass(frozen=True, slots=True)
class Place:
    """The place of an image in a denoiser."""

    sample_id: str
    arrived: float  # by `time.perf_counter`, as is the promise
    urgency: Urgency = NOT_URGENT
    forecast: Forecast | None = None  # None: the engine was not there yet
    has_promise: bool = False


class StageAdmission:
    """Lets images into a denoiser, from any thread.

    Args:
        deadline_seconds: In which an image must be done if nothing else is promised.
        probability: With which promises should be kept.
    """

    def __init__(self, deadline_seconds: float = math.inf, probability: float = 0.95):
        self.replica = secrets.token_hex(4)
        self._deadline_seconds = deadline_seconds
        self._lock = threading.Lock()
        self._control = AdmissionControl(probability)
        self._estimator: WorkEstimator | None = None
        self._ids = map(str, itertools.count())

    def begin(self, engine: Engine) -> None:
        """An engine is there."""
        with self._lock:
            self._control.update(engine.curve)
            self._estimator = engine.estimator

    def observe(self, engine: Engine, outcomes: Sequence[SampleOutcome]) -> None:
        """Learn what a tick has done, on the engine's thread."""
        progress, now = engine.progress, time.perf_counter()
        with self._lock:
            self._control.update(engine.curve)
            for sample_id, ticks_done in progress:
                self._control.progress(sample_id, ticks_done)
            for outcome in outcomes:
                self._control.leave(outcome.request_id, now, outcome.reason is FinishReason.DONE)

    def clear(self) -> None:
        """The engine has failed, with all images in it."""
        with self._lock:
            self._control.clear()

    @contextmanager
    def place(self, params: GenerationParams, context: RequestContext) -> Iterator[Place]:
        """A place for an image until the block ends.

        Raises:
            PromiseRefused: It would be done too late.
            DeadlineTooShort: It would be done too late on an idle device, too.
            InvalidParams: It cannot be planned.
        """
        place = self._enter(params, context)
        try:
            yield place
        finally:
            with self._lock:  # it has left already, unless it never came to the engine
                self._control.leave(place.sample_id, time.perf_counter(), is_done=False)

    def quote(self, params: GenerationParams, context: RequestContext) -> Quote:
        """What an image would be told now. Raises `InvalidParams`."""
        now, terms = time.perf_counter(), context.terms or CERTAIN
        with self._lock:
            demand = self._demand("quote", params, context, terms, now)
            forecast = Forecast(True, 0.0, math.inf) if demand is None else self._control.quote(demand, now)
            return Quote(
                is_admitted=forecast.is_admitted,
                promised_seconds=None if terms.due is None else forecast.limit - now,
                # the other images of the request follow the first
                forecast_seconds=forecast.seconds + (terms.images - 1) * forecast.work_seconds,
                retry_seconds=forecast.retry_seconds,
                backlog_seconds=self._control.backlog_seconds,
            )

    def report(self, place: Place) -> DenoiseForecast | None:
        """What an image that is done was told; None if the engine was not there yet."""
        forecast = place.forecast
        if forecast is None:
            return None
        with self._lock:
            backlog = self._control.backlog_seconds
        return DenoiseForecast(
            promised_seconds=forecast.limit - place.arrived if place.has_promise else None,
            forecast_seconds=forecast.seconds,
            seconds=time.perf_counter() - place.arrived,
            backlog_seconds=backlog,
            replica=self.replica,
        )

    def _enter(self, params: GenerationParams, context: RequestContext) -> Place:
        now, terms = time.perf_counter(), context.terms or CERTAIN
        place = Place(next(self._ids), now, has_promise=terms.due is not None)
        with self._lock:
            demand = self._demand(place.sample_id, params, context, terms, now)
            if demand is None:
                return place
            forecast = self._control.offer(demand, now)
        if not forecast.is_admitted:
            raise self._refusal(forecast, terms, now)
        promise = forecast.limit if terms.due is not None or terms.is_background else math.inf
        urgency = Urgency(promise, terms.priority, terms.is_background)
        return replace(place, urgency=urgency, forecast=forecast)

    def _demand(
        self,
        sample_id: str,
        params: GenerationParams,
        context: RequestContext,
        terms: PromiseTerms,
        now: float,
    ) -> Demand | None:
        """What an image asks of the engine; None if there is none yet."""
        if self._estimator is None:
            return None
        ticks, work = self._estimator.estimate(params)
        seconds = self._deadline_seconds if terms.due is None else terms.due - time.time()
        return Demand(
            sample_id=sample_id,
            ticks=ticks,
            work=work,
            limit=now + seconds,
            arrived=now,
            share=context.share,
            level=terms.priority,
            is_background=terms.is_background,
            images=terms.images,
            is_default=terms.is_default,
            is_certain=terms.is_certain,
            patience=terms.patience,
        )

    def _refusal(self, forecast: Forecast, terms: PromiseTerms, now: float) -> Exception:
        promised = forecast.limit - now
        if not forecast.is_possible and terms.due is not None and not terms.is_default:
            return DeadlineTooShort(param="deadline_ms")
        error = PromiseRefused(
            f"The image would be done in about {forecast.seconds:.1f} s, which is too late for a promise of "
            f"{max(promised, 0.0):.1f} s; please try again in {math.ceil(forecast.retry_seconds)} s.",
            promised,
            forecast.seconds,
            forecast.retry_seconds,
            forecast.work_seconds,
        )
        error.replica = self.replica
        return error
