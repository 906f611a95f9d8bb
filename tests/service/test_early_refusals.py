"""Refusals at the gateway: as long as a denoiser's refusal holds, and with a time of its own for each."""

from dataclasses import replace

import pytest

from safelight.service.early_refusals import FRESH_PART, GRACE_SECONDS, AskedImages, EarlyRefusals
from safelight.service.errors import PromiseRefused

ASKED = AskedImages("model", "caller", "digest", 100.0)
WINDOW = 30.0


def refusal(replica: str = "a", retry: float = 2.0, work: float = 1.5) -> PromiseRefused:
    error = PromiseRefused(promised=30.0, forecast=32.0, retry=retry, work=work)
    error.replica = replica
    return error


def is_refused(refusals: EarlyRefusals, asked: AskedImages, now: float, window: float = WINDOW) -> bool:
    try:
        refusals.check(asked, window, now)
    except PromiseRefused:
        return True
    return False


def test_requests_like_a_refused_one_are_refused_for_as_long() -> None:
    refusals = EarlyRefusals()
    assert refusals.check(ASKED, WINDOW, 0.0) == 1.0
    refusals.learn(ASKED, WINDOW, refusal(), 0.0)
    other = replace(ASKED, digest="other")
    assert is_refused(refusals, other, 1.9)
    assert is_refused(refusals, replace(other, cost=200.0), 1.0)
    assert not is_refused(refusals, replace(other, cost=50.0), 1.0)
    assert not is_refused(refusals, replace(other, caller="another"), 1.0)
    assert not is_refused(refusals, replace(other, model="another"), 1.0)
    assert not is_refused(refusals, other, 1.0, window=60.0)
    assert not is_refused(refusals, other, 2.1)


def test_all_denoisers_that_are_known_must_have_refused() -> None:
    refusals = EarlyRefusals()
    refusals.see("b", 0.0)
    refusals.learn(ASKED, WINDOW, refusal("a"), 0.0)
    other = replace(ASKED, digest="other")
    assert not is_refused(refusals, other, 1.0)
    refusals.learn(ASKED, WINDOW, refusal("b"), 1.0)
    assert is_refused(refusals, other, 1.5)
    refusals.learn(ASKED, WINDOW, refusal("a", retry=100.0), 2.0)
    refusals.see("a", 50.0)
    assert is_refused(refusals, other, 50.0), "the other has been silent"


def test_each_who_is_refused_gets_a_time_of_its_own() -> None:
    refusals = EarlyRefusals()
    first = refusal(retry=2.0, work=1.5)
    refusals.learn(ASKED, WINDOW, first, 0.0)
    assert first.retry_seconds == 2.0
    times = []
    for k in range(3):
        with pytest.raises(PromiseRefused) as caught:
            refusals.check(replace(ASKED, digest=str(k)), WINDOW, 1.0)
        times.append(caught.value.retry_seconds)
    assert times == pytest.approx([2.5, 4.0, 5.5])
    with pytest.raises(PromiseRefused) as caught:
        refusals.check(replace(ASKED, digest="1"), WINDOW, 1.5)
    assert caught.value.retry_seconds == pytest.approx(3.5), "it keeps the time that it was told"


def test_who_returns_in_time_goes_before_others() -> None:
    refusals = EarlyRefusals()
    refusals.learn(ASKED, WINDOW, refusal(retry=2.0), 0.0)
    refusals.learn(replace(ASKED, digest="other"), WINDOW, refusal(retry=3.0), 0.0)
    assert refusals.check(replace(ASKED, digest="fresh", cost=1.0), WINDOW, 2.0) == FRESH_PART
    assert refusals.check(ASKED, WINDOW, 2.0) == 1.0
    assert is_refused(refusals, ASKED, 2.0), "the same request once more is a fresh one"


def test_who_does_not_return_is_forgotten() -> None:
    refusals = EarlyRefusals()
    refusals.learn(ASKED, WINDOW, refusal(retry=2.0), 0.0)
    assert refusals.check(replace(ASKED, digest="fresh"), WINDOW, 2.1) == FRESH_PART
    assert refusals.check(replace(ASKED, digest="fresh"), WINDOW, 2.1 + GRACE_SECONDS) == 1.0
