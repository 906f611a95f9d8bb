"""Ray Serve autoscaling: of stages by work, of gateways by requests.

Serve's own policy counts requests that it routes, but an image's work depends on its steps and its size, and
a gateway that serves HTTP itself gets its requests without Serve.
"""

import math
from typing import Any

from ray.serve.config import AutoscalingContext

from safelight.pipeline.scheduling.autoscaling import target_replicas

# the statistics that every replica of a stage reports
WORK_LEFT, OFFERED, SECONDS_A_JOB = "work_left", "offered", "seconds_a_job"
IN_FLIGHT = "in_flight"  # the statistic of a gateway: requests that it has not answered


class ByWork:
    """An autoscaling policy for a stage; Serve applies its bounds and delays to the result.

    Args:
        target_seconds: Device seconds of work that may wait for each replica.
    """

    def __init__(self, target_seconds: float):
        self._target_seconds = target_seconds

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The target number of replicas, and the state for the next call."""
        stats = _last_values(ctx)
        measured = [seconds for seconds in stats.get(SECONDS_A_JOB, []) if seconds > 0]
        seconds_a_job = (
            sum(measured) / len(measured) if measured else ctx.policy_state.get(SECONDS_A_JOB, 0.0)
        )
        # requests queued at handles have reached no replica, so no replica has reported their work
        queued_work = ctx.total_queued_requests * seconds_a_job
        work_left = sum(stats.get(WORK_LEFT, [])) + queued_work
        target = target_replicas(work_left, sum(stats.get(OFFERED, [])), self._target_seconds)
        if ctx.total_num_requests > 0:
            target = max(target, 1)  # also when no job has been measured yet
        return target, {SECONDS_A_JOB: seconds_a_job}


class ByRequests:
    """An autoscaling policy for gateways that serve HTTP themselves.

    Args:
        target_requests: Requests that may be in flight in each gateway.
    """

    def __init__(self, target_requests: float):
        self._target_requests = target_requests

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The target number of replicas; Serve applies its bounds and delays to it."""
        return math.ceil(sum(_last_values(ctx).get(IN_FLIGHT, [])) / self._target_requests), {}


def _last_values(ctx: AutoscalingContext) -> dict[str, list[float]]:
    """What each replica reported last, by the name of the statistic."""
    return {
        name: [series[-1].value for series in replicas.values() if series]
        for name, replicas in (ctx.raw_metrics or {}).items()
    }
