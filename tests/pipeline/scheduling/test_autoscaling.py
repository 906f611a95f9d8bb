"""The number of replicas: enough for waiting work, enough for the arrival rate, none without work."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safelight.pipeline.scheduling.autoscaling import OfferedLoad, target_replicas


@pytest.mark.parametrize(
    ("work_left", "offered", "replicas"),
    [
        (0.0, 0.0, 0),
        (0.1, 0.0, 1),
        (5.0, 0.0, 1),
        (5.1, 0.0, 2),
        (50.0, 0.0, 10),
        (0.0, 0.8, 1),
        (0.0, 0.81, 2),
        (4.0, 3.9, 5),
        (40.0, 1.0, 8),
    ],
)
def test_the_larger_need_decides(work_left: float, offered: float, replicas: int) -> None:
    assert target_replicas(work_left, offered, target_seconds=5.0) == replicas


@given(st.floats(0, 1e4), st.floats(0, 1e3), st.floats(0.1, 100))
def test_replicas_suffice_and_one_less_would_not(work_left: float, offered: float, target: float) -> None:
    n = target_replicas(work_left, offered, target)
    assert work_left <= n * target * (1 + 1e-9) and offered <= n * 0.8 * (1 + 1e-9)
    assert n == 0 or work_left > (n - 1) * target or offered > (n - 1) * 0.8 * (1 - 1e-9)


def test_the_offered_load_is_the_recent_slope_of_the_total() -> None:
    load = OfferedLoad(look_back=10.0)
    assert load.observe(100.0, 0.0) == 0.0
    rates = [load.observe(100.0 + 0.5 * second, float(second)) for second in range(1, 31)]
    assert rates == pytest.approx([0.5] * 30)
    silent = [load.observe(115.0, 30.0 + second) for second in range(1, 15)]
    assert silent == sorted(silent, reverse=True) and silent[4] == pytest.approx(0.25) and silent[-1] == 0.0


def test_a_falling_total_is_no_negative_load() -> None:
    load = OfferedLoad()
    load.observe(10.0, 0.0)
    assert load.observe(9.0, 1.0) == 0.0
