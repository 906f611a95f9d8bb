"""How often a service is started again."""

from safelight.service.supervision.restarts import WINDOW_SECONDS, Restarts


def test_a_number_of_restarts_is_allowed_within_the_window() -> None:
    restarts = Restarts(2)
    assert [restarts.take(now) for now in (100.0, 101.0, 102.0)] == [True, True, False]
    assert not restarts.take(99.0 + WINDOW_SECONDS)
    assert restarts.take(100.0 + WINDOW_SECONDS)
    assert not restarts.take(100.5 + WINDOW_SECONDS)
    assert restarts.number == 3


def test_none_is_allowed_by_zero() -> None:
    assert not Restarts(0).take(1.0)
