"""The autoscaling policy on Serve's own context, and which stages it may scale to none."""

import warnings
from typing import Any

import pytest

with warnings.catch_warnings():  # Serve warns about pydantic
    warnings.simplefilter("ignore")
    from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
    from ray.serve.config import AutoscalingContext

    from safelight.service.ray_serve.autoscaling import ByRequests, ByWork

from safelight.service.setting_types import BadSetting
from safelight.service.settings import Settings, may_sleep

STAGE = DeploymentID("Denoiser", "safelight")


def context(
    *replicas: dict[str, float], queued: float = 0.0, total: float = 0.0, state: dict[str, Any] | None = None
) -> AutoscalingContext:
    """Serve's context for a policy; each of `replicas` is what one replica reported last."""
    ids = [ReplicaID(str(k), STAGE) for k in range(len(replicas))]
    names = {name for replica in replicas for name in replica}
    raw = {
        name: {
            replica_id: [TimeStampedValue(0.0, -1.0), TimeStampedValue(1.0, stats[name])]
            for replica_id, stats in zip(ids, replicas, strict=True)
        }
        for name in names
    }
    return AutoscalingContext(
        deployment_id=STAGE,
        deployment_name="Denoiser",
        app_name="safelight",
        current_num_replicas=len(replicas),
        target_num_replicas=len(replicas),
        running_replicas=ids,
        total_num_requests=total,
        total_queued_requests=queued,
        aggregated_metrics=None,
        raw_metrics=raw,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=8,
        policy_state=state or {},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=2.0,
        config=None,
    )


def stats(work_left: float = 0.0, offered: float = 0.0, seconds_a_job: float = 0.0) -> dict[str, float]:
    return {"work_left": work_left, "offered": offered, "seconds_a_job": seconds_a_job}


def test_replicas_follow_work_not_requests() -> None:
    policy = ByWork(target_seconds=5.0)
    assert policy(context(stats(work_left=24.0), total=2.0))[0] == 5  # two long requests
    assert policy(context(stats(work_left=4.0), total=40.0))[0] == 1  # forty short requests
    assert policy(context(stats(work_left=12.0), stats(work_left=12.0)))[0] == 5
    assert (
        policy(context(stats(offered=0.5), stats(offered=0.5)))[0] == 2
    )  # to keep up with new work, though nothing waits
    assert policy(context(stats()))[0] == 0


def test_requests_queued_at_handles_count_with_the_last_known_seconds_a_job() -> None:
    policy = ByWork(target_seconds=5.0)
    target, state = policy(context(stats(work_left=5.0, seconds_a_job=0.5), queued=20.0, total=30.0))
    assert (target, state) == (3, {"seconds_a_job": 0.5})
    assert policy(context(queued=20.0, total=20.0, state=state))[0] == 2  # no replica reports
    assert policy(context(queued=20.0, total=20.0))[0] == 1  # and there is no earlier report


@pytest.mark.parametrize(
    ("choices", "asleep"),
    [
        ({}, set()),
        ({"denoise_replicas": "0-8", "encode_replicas": "2"}, {"denoise"}),
        ({"encode_replicas": "0-1", "decode_replicas": "0-1"}, {"encode", "decode"}),
        ({"stages": "colocated", "denoise_replicas": "0-2"}, {"encode", "denoise", "decode"}),
        ({"stages": "colocated"}, set()),
    ],
)
def test_stages_whose_range_starts_at_none_may_sleep(choices: dict[str, str], asleep: set[str]) -> None:
    assert may_sleep(Settings(**choices)) == asleep


@pytest.mark.parametrize(
    "choices",
    [
        {"denoise_replicas": "many"},
        {"denoise_replicas": "3-1"},
        {"denoise_replicas": "0"},
        {"denoise_replicas": "1-"},
        {"gateway_replicas": "0-2"},
        {"encode_replicas": "-1"},
        {"denoise_gpus": -1.0},
        {"target_seconds": 0.0},
    ],
)
def test_an_invalid_setting_is_refused_by_name(choices: dict[str, Any]) -> None:
    with pytest.raises(BadSetting, match=next(iter(choices))):
        Settings(**choices)


@pytest.mark.parametrize(
    ("in_flight", "expected"), [([], 0), ([0.0], 0), ([1.0], 1), ([64.0], 1), ([64.0, 1.0], 2), ([200.0], 4)]
)
def test_gateways_follow_the_requests_in_flight(in_flight: list[float], expected: int) -> None:
    replicas = [{"in_flight": requests} for requests in in_flight]
    assert ByRequests(target_requests=64)(context(*replicas)) == (expected, {})
