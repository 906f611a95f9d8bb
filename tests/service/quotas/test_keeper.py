"""Requests are held to their keys' limits: reserved by forecast, settled by use, overspent by no race."""

import asyncio
from dataclasses import replace
from datetime import datetime

import pytest

from safelight.pipeline.params import StageCost
from safelight.service.errors import LimitReached
from safelight.service.keys.api_key import ApiKey, KeyLimits, KeySpec
from safelight.service.quotas.counters import memory_counters
from safelight.service.quotas.forecast import UNKNOWN_SECONDS, DeviceSecondsForecast
from safelight.service.quotas.keeper import LimitStatus, QuotaKeeper, Reservation, Use, use_of
from safelight.service.quotas.periods import (
    DEVICE_SECONDS,
    IMAGES,
    SPEND,
    Period,
    format_duration,
    format_time,
)
from tests.fakes import USAGE, make_params

IMAGE = make_params()
MODEL = "emoji-128"
SECONDS = 2.375  # that an image of the fakes takes in all stages
NOW = 1_796_040_000.0  # 2026-11-30T12:00:00Z
PRICE = 7200.0  # an hour; 2 a second


def key_of(**limits: float) -> ApiKey:
    return ApiKey("key_1", KeySpec("alice", limits=KeyLimits(**limits)), ())  # type: ignore[arg-type]


@pytest.fixture
def keeper() -> QuotaKeeper:
    keeper = QuotaKeeper(memory_counters(), PRICE, lambda: NOW)
    keeper.forecast.observe(MODEL, IMAGE, USAGE)
    return keeper


async def reserve(
    keeper: QuotaKeeper, key: ApiKey, num_images: int = 1
) -> tuple[Reservation, list[LimitStatus]]:
    statuses: list[LimitStatus] = []
    return await keeper.reserve(key, MODEL, num_images * [IMAGE], statuses), statuses


async def test_images_are_counted_by_the_day(keeper: QuotaKeeper) -> None:
    key = key_of(images_per_day=5)
    _, statuses = await reserve(keeper, key, 3)
    assert statuses == [LimitStatus("images", 5, 2.0, 43200.0)]
    with pytest.raises(LimitReached) as refusal:
        await reserve(keeper, key, 3)
    assert str(refusal.value) == (
        "The limit images_per_day of this API key is reached: 3 of 5 used or in use in 2026-11-30, and the "
        "request needs 3. It frees at 2026-12-01T00:00:00Z."
    )
    error = refusal.value
    assert (error.status, error.code, error.type) == (429, "insufficient_quota", "rate_limit_error")
    assert (error.retry_after, error.should_retry) == (43200, False)
    await reserve(keeper, key, 2)  # what was refused took nothing


async def test_spend_is_counted_by_the_month_and_device_seconds_by_the_day(keeper: QuotaKeeper) -> None:
    key = key_of(device_seconds_per_day=10.0, spend_per_month=20.0)
    _, statuses = await reserve(keeper, key, 2)
    assert [(status.resource, status.limit, status.seconds) for status in statuses] == [
        ("device-seconds", 10.0, 43200.0),
        ("spend", 20.0, 43200.0),
    ]
    remaining = [10.0 - 2 * SECONDS, 20.0 - 4 * SECONDS]
    assert [status.remaining for status in statuses] == pytest.approx(remaining, abs=0.002)
    with pytest.raises(LimitReached, match="device_seconds_per_day .* 4.75 of 10 .* needs 7.1"):
        await reserve(keeper, key, 3)
    with pytest.raises(LimitReached, match="spend_per_month .* in 2026-11, .* 2026-12-01"):
        await reserve(keeper, key_of(spend_per_month=1.0))


async def test_what_was_used_is_counted_in_place_of_what_was_reserved(keeper: QuotaKeeper) -> None:
    key = key_of(images_per_day=10, device_seconds_per_day=100.0)
    reservation, _ = await reserve(keeper, key, 4)
    await keeper.settle(reservation, Use(1, 30.0))
    await keeper.settle(reservation, Use(9, 99.0))  # once
    _, statuses = await reserve(keeper, key, 0)
    assert [status.remaining for status in statuses] == [9, 70.0]


async def test_a_quota_of_several_is_reserved_whole_or_not_at_all(keeper: QuotaKeeper) -> None:
    key = key_of(images_per_day=100, device_seconds_per_day=3.0)
    with pytest.raises(LimitReached, match="device_seconds_per_day"):
        await reserve(keeper, key, 2)
    _, statuses = await reserve(keeper, key, 1)
    assert [status.remaining for status in statuses] == [99, pytest.approx(3.0 - SECONDS, abs=0.002)]


@pytest.mark.parametrize(
    "limits",
    [
        {"images_per_day": 50},
        {"device_seconds_per_day": 50 * SECONDS},
        {"spend_per_month": 50 * 2 * SECONDS},
    ],
)
async def test_no_race_overspends_a_cap_by_more_than_an_image(
    keeper: QuotaKeeper, limits: dict[str, float]
) -> None:
    """300 requests of one to three images, of which many run at a time, and which take what they may."""
    key, total = key_of(**limits), Use()

    async def request(number: int) -> bool:
        nonlocal total
        try:
            reservation, _ = await reserve(keeper, key, 1 + number % 3)
        except LimitReached:
            return False
        await asyncio.sleep(0.0 if number % 2 else 0.001)
        use = Use(reservation.use.images, reservation.use.images * SECONDS)
        total = Use(total.images + use.images, total.device_seconds + use.device_seconds)
        await keeper.settle(reservation, use)
        return True

    admitted = await asyncio.gather(*(request(number) for number in range(300)))
    assert any(admitted) and not all(admitted)
    assert 47 <= total.images <= 51


async def test_a_request_that_ends_in_the_next_period_is_settled_in_its_own() -> None:
    now = NOW
    keeper = QuotaKeeper(memory_counters(), PRICE, lambda: now)
    key = key_of(images_per_day=10)
    reservation, _ = await reserve(keeper, key, 6)
    now += 86_400
    await keeper.settle(reservation, Use())
    _, statuses = await reserve(keeper, key, 1)
    assert statuses[0].remaining == 9
    now -= 86_400
    _, statuses = await reserve(keeper, key, 1)
    assert statuses[0].remaining == 9


async def test_requests_are_counted_by_the_minute(keeper: QuotaKeeper) -> None:
    key, statuses = key_of(requests_per_minute=2), list[LimitStatus]()
    for remaining in (1, 0):
        await keeper.count_request(key, statuses)
        assert (statuses[-1].resource, statuses[-1].limit, statuses[-1].remaining) == (
            "requests",
            2,
            remaining,
        )
    with pytest.raises(
        LimitReached, match="requests_per_minute .* 2 in a minute. It frees at 2026-11-30T12:"
    ) as refusal:
        await keeper.count_request(key, statuses)
    assert (refusal.value.code, refusal.value.should_retry) == ("rate_limit_exceeded", True)
    assert 1 <= (refusal.value.retry_after or 0) <= 60
    await keeper.count_request(key_of(), statuses)
    assert len(statuses) == 3


def test_a_request_used_what_its_images_took() -> None:
    reserved = Use(3, 9.0)
    assert use_of(reserved, [USAGE, USAGE], 1.0, has_ended_early=False) == Use(2, 2 * SECONDS)
    assert use_of(reserved, [], 1.0, has_ended_early=False) == Use()


@pytest.mark.parametrize(("seconds", "charged"), [(0.5, 1.5), (60.0, 9.0)])
def test_a_request_whose_caller_left_is_charged_what_it_may_have_used(seconds: float, charged: float) -> None:
    assert use_of(Use(3, 9.0), [], seconds, has_ended_early=True) == Use(0, charged)


def test_the_forecast_is_the_highest_of_late() -> None:
    forecast = DeviceSecondsForecast()
    assert forecast.seconds(MODEL, [IMAGE, IMAGE]) == 2 * UNKNOWN_SECONDS
    forecast.observe(MODEL, IMAGE, USAGE)
    assert forecast.seconds(MODEL, [IMAGE]) == SECONDS
    cheap = replace(USAGE, decode=StageCost(0.0, 0))
    forecast.observe(MODEL, IMAGE, cheap)
    assert SECONDS - 0.02 < forecast.seconds(MODEL, [IMAGE]) < SECONDS
    twice = replace(IMAGE, num_steps=8)
    assert forecast.seconds(MODEL, [twice]) > forecast.seconds(MODEL, [IMAGE]) + 1.7
    wide = replace(IMAGE, width=16)
    assert forecast.seconds(MODEL, [wide]) > forecast.seconds(MODEL, [twice])
    unguided = replace(IMAGE, guidance_scale=1.0)
    assert forecast.seconds(MODEL, [unguided]) < forecast.seconds(MODEL, [IMAGE]) - 0.8


@pytest.mark.parametrize(
    ("now", "day", "month"),
    [
        ("2026-11-30T23:59:59Z", ("2026-11-30", "2026-12-01T00:00:00Z"), ("2026-11", "2026-12-01T00:00:00Z")),
        ("2026-12-31T00:00:00Z", ("2026-12-31", "2027-01-01T00:00:00Z"), ("2026-12", "2027-01-01T00:00:00Z")),
        ("2028-02-28T12:00:00Z", ("2028-02-28", "2028-02-29T00:00:00Z"), ("2028-02", "2028-03-01T00:00:00Z")),
    ],
)
def test_periods_are_days_and_months_of_utc(now: str, day: tuple[str, str], month: tuple[str, str]) -> None:

    seconds = datetime.fromisoformat(now).timestamp()
    for quota, (name, ends) in ((IMAGES, day), (DEVICE_SECONDS, day), (SPEND, month)):
        period = Period.of(quota, seconds)
        assert (period.name, format_time(period.ends)) == (name, ends)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0ms"), (0.35, "350ms"), (1.0, "1s"), (59.4, "59s"), (125.0, "2m5s"), (46805.0, "13h0m5s")],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_models_are_forecast_apart() -> None:
    forecast = DeviceSecondsForecast()
    forecast.observe(MODEL, IMAGE, USAGE)
    assert forecast.seconds(MODEL, [IMAGE]) == pytest.approx(SECONDS)
    assert forecast.seconds("another", [IMAGE]) == UNKNOWN_SECONDS
