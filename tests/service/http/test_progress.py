"""How far a request is, by the time that others took."""

import pytest

from safelight.service.http.progress import LEAST, MOST, ProgressEstimator


def test_nothing_is_known_before_the_first_request() -> None:
    assert ProgressEstimator().estimate("m", 10.0, 20) == (LEAST, 0.0)


def test_the_first_request_tells_how_long_a_step_takes() -> None:
    estimator = ProgressEstimator()
    estimator.observe("m", 4.0, 20)
    assert estimator.estimate("m", 1.0, 10) == (0.5, 1.0)
    assert estimator.estimate("m", 0.0, 10) == (LEAST, 2.0)
    assert estimator.estimate("m", 9.0, 10) == (MOST, 0.0)  # not done until it is


def test_later_requests_move_the_mean() -> None:
    estimator = ProgressEstimator()
    estimator.observe("m", 1.0, 1)
    estimator.observe("m", 2.0, 1)
    assert estimator.estimate("m", 0.6, 1)[0] == pytest.approx(0.5)


def test_models_do_not_tell_each_others_pace() -> None:
    estimator = ProgressEstimator()
    estimator.observe("slow", 100.0, 10)
    assert estimator.estimate("quick", 1.0, 10) == (LEAST, 0.0)
    estimator.observe("quick", 1.0, 10)
    assert estimator.estimate("quick", 0.5, 10) == (0.5, 0.5)
