"""What a greedy caller does to the others, simulated: a shorter run of the documented one."""

import pytest

from safelight.pipeline.capacity.comparison import greedy


def test_a_greedy_caller_hardly_delays_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs them at most half of their p95; in one queue, many times that. The device is well used."""
    monkeypatch.setattr(greedy, "SECONDS", 60.0)
    alone, _ = greedy.run(greedy.make_rule("fair shares"), 0.8, has_greedy=False)
    beside, rate = greedy.run(greedy.make_rule("fair shares"), 0.8, has_greedy=True)
    in_one_queue, _ = greedy.run(greedy.make_rule("one queue"), 0.8, has_greedy=True)
    assert beside <= 1.5 * alone
    assert in_one_queue > 5 * alone
    assert rate > 0.85 * greedy.CAPACITY


def test_shares_are_those_of_the_weights() -> None:
    rows = list(greedy.share_rows(seconds=10.0))
    assert [row[0] for row in rows] == ["1", "2", "4"]
    for row in rows:
        assert float(row[2].rstrip("%")) == pytest.approx(float(row[1].rstrip("%")), rel=0.01)
