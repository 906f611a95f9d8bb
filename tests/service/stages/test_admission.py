"""Admission to a denoiser: by the terms of the image, and by what the engine's thread says of its queue."""

import pickle
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from safelight.pipeline.engine.engine import Engine
from safelight.pipeline.params import FinishReason, Share
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.service.errors import DeadlineTooShort, PromiseRefused, as_service_error
from safelight.service.messages import NO_CONTEXT, PromiseTerms, RequestContext
from safelight.service.stages.admission import StageAdmission
from tests.fakes import make_params

STEPS = 10
# An image of 10 steps fills its ticks, and so takes 10 seconds whatever else there is.
ENGINE: Any = SimpleNamespace(
    curve=CostCurve((1.0,), (1.0,)),
    estimator=SimpleNamespace(estimate=lambda params: (params.num_steps, float(params.num_steps))),
    progress=[],
)


def make_admission(deadline_seconds: float = 300.0) -> StageAdmission:
    admission = StageAdmission(deadline_seconds)
    admission.begin(cast(Engine, ENGINE))
    return admission


def make_context(seconds: float | None, caller: str = "", **terms: Any) -> RequestContext:
    due = None if seconds is None else time.time() + seconds
    return RequestContext(share=Share(caller), terms=PromiseTerms(due, **terms))


@contextmanager
def filled(admission: StageAdmission, context: RequestContext) -> Iterator[tuple[int, PromiseRefused]]:
    """Let images in until one is refused; yields their number and the refusal."""
    with ExitStack() as places:
        count = 0
        try:
            while True:
                places.enter_context(admission.place(make_params(num_steps=STEPS), context))
                count += 1
        except PromiseRefused as refusal:
            error = refusal
        yield count, error


def test_images_are_let_in_until_a_promise_would_be_broken() -> None:
    with filled(make_admission(), make_context(45.0)) as (count, _):
        assert count == 3


def test_without_a_promise_the_deadline_bounds_the_queue() -> None:
    with filled(make_admission(deadline_seconds=100.0), make_context(None)) as (count, _):
        assert count == 8


def test_images_without_terms_are_let_in() -> None:
    """Those of the warm-up and of the command line."""
    admission = make_admission(deadline_seconds=1.0)
    for _ in range(20):
        with admission.place(make_params(num_steps=STEPS), NO_CONTEXT) as place:
            assert place.urgency.promise == float("inf")


def test_before_there_is_an_engine_all_are_let_in() -> None:
    with StageAdmission().place(make_params(), make_context(0.001)) as place:
        assert place.forecast is None
    assert StageAdmission().report(place) is None
    assert StageAdmission().quote(make_params(), make_context(5.0)).is_admitted


def test_a_refusal_says_when_to_come_again_and_who_refused() -> None:
    admission = make_admission()
    with filled(admission, make_context(45.0)) as (_, refusal):
        error = as_service_error(pickle.loads(pickle.dumps(refusal)))
    assert isinstance(error, PromiseRefused)
    assert error.replica == admission.replica
    assert error.forecast_seconds == pytest.approx(40.0, rel=0.1)
    assert error.promised_seconds == pytest.approx(45.0, abs=1.0)
    assert 0 < error.retry_seconds < 30.0
    assert error.body()["error"]["forecast"]["retry_seconds"] == round(error.retry_seconds, 3)
    assert error.headers["retry-after"] == str(error.retry_after)
    assert f"{error.retry_after} s" in str(error)


def test_a_deadline_that_no_idle_device_keeps_is_a_fault_of_the_request() -> None:
    with pytest.raises(DeadlineTooShort):
        make_admission().place(make_params(num_steps=STEPS), make_context(5.0)).__enter__()
    with make_admission().place(make_params(num_steps=STEPS), make_context(5.0, is_default=True)) as place:
        assert place.forecast is not None
        assert place.forecast.limit - place.arrived >= 20.0


def test_what_was_let_in_before_is_let_in() -> None:
    with make_admission().place(make_params(num_steps=STEPS), make_context(5.0, is_certain=True)):
        pass


def test_places_are_freed_when_the_block_ends_or_the_engine_says_so() -> None:
    admission, context = make_admission(), make_context(25.0)
    for _ in range(2):
        with filled(admission, context) as (count, _):
            assert count == 2
    with filled(admission, context):
        admission.clear()
        with filled(admission, context) as (count, _):
            assert count == 2
    with admission.place(make_params(num_steps=STEPS), context) as place:
        outcome: Any = SimpleNamespace(request_id=place.sample_id, reason=FinishReason.DONE)
        admission.observe(cast(Engine, ENGINE), [outcome])
        assert admission.quote(make_params(), context).backlog_seconds == 0.0
        report = admission.report(place)
    assert report is not None
    assert report.promised_seconds == pytest.approx(25.0, abs=0.5)
    assert report.forecast_seconds == pytest.approx(10.0)


def test_the_progress_of_the_engine_shortens_the_queue() -> None:
    admission = make_admission()
    with admission.place(make_params(num_steps=STEPS), make_context(45.0)) as place:
        before = admission.quote(make_params(num_steps=STEPS), make_context(45.0))
        engine: Any = SimpleNamespace(**vars(ENGINE) | {"progress": [(place.sample_id, 6)]})
        admission.observe(cast(Engine, engine), [])
        after = admission.quote(make_params(num_steps=STEPS), make_context(45.0))
    assert (before.backlog_seconds, after.backlog_seconds) == (10.0, 4.0)
    assert after.forecast_seconds < before.forecast_seconds


def test_a_job_goes_after_others_and_is_promised_nothing() -> None:
    admission = make_admission()
    with (
        admission.place(make_params(), make_context(None, is_background=True)) as job,
        admission.place(make_params(), make_context(30.0, priority=3)) as place,
    ):
        assert job.urgency.is_background
        assert place.urgency.level == 3
        report = admission.report(job)
    assert report is not None
    assert report.promised_seconds is None
