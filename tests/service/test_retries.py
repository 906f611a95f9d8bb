"""Losses of one image, and the budget of all retries."""

import pytest

from safelight.service.errors import PoisonedRequest, StageLost
from safelight.service.retries import MAX_RETRIES, Losses, RetryBudget


def test_an_image_is_given_up_after_as_many_losses_as_it_has_retries() -> None:
    losses = Losses()
    for stage in ("encode", "decode", "denoise")[:MAX_RETRIES]:
        losses.add(StageLost(stage=stage))
        assert not losses.is_suspect
    with pytest.raises(StageLost):
        losses.add(StageLost(stage="decode"))


def test_the_third_loss_of_the_denoiser_is_the_images_own_fault() -> None:
    losses = Losses()
    losses.add(StageLost(stage="denoise"))
    assert not losses.is_suspect
    losses.add(StageLost(stage="denoise"))
    assert losses.is_suspect
    losses.add(StageLost(stage="decode"))  # says nothing about the image
    with pytest.raises(PoisonedRequest) as poisoned:
        losses.add(StageLost(stage="denoise"))
    assert (poisoned.value.status, poisoned.value.headers) == (422, {"x-should-retry": "false"})


def test_a_budget_is_used_up_and_refilled_at_its_rate() -> None:
    budget = RetryBudget(4, refill_seconds=8.0)
    assert [budget.take(100.0) for _ in range(5)] == [True] * 4 + [False]
    assert not budget.take(101.0)
    assert [budget.take(102.0), budget.take(102.0)] == [True, False]
    assert [budget.take(1000.0) for _ in range(5)] == [True] * 4 + [False]  # it holds no more


def test_a_clock_that_goes_back_refills_nothing() -> None:
    budget = RetryBudget(1, refill_seconds=1.0)
    assert budget.take(10.0)
    assert not budget.take(5.0)
    assert not budget.take(5.5)
    assert budget.take(6.0)
