"""Scaling by work: Serve's own policy counts requests, and a request of 8 steps is not one of 50."""

from typing import Any

from ray.serve.config import AutoscalingContext

from safelight.pipeline.scheduling.autoscaling import target_replicas

WORK_LEFT, OFFERED, SECONDS_A_JOB = (
    "work_left",
    "offered",
    "seconds_a_job",
)  # what every replica of a stage reports


class ByWork:
    """The policy: `target_seconds` of work may wait for a replica. Bounds and delays are Serve's."""

    def __init__(self, target_seconds: float):
        self._target_seconds = target_seconds

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        latest = {
            name: [series[-1].value for series in of.values() if series]
            for name, of in (ctx.raw_metrics or {}).items()
        }
        known = [seconds for seconds in latest.get(SECONDS_A_JOB, []) if seconds > 0]
        seconds_a_job = sum(known) / len(known) if known else ctx.policy_state.get(SECONDS_A_JOB, 0.0)
        at_handles = (
            ctx.total_queued_requests * seconds_a_job
        )  # these have met no replica that could tell their work
        work_left = sum(latest.get(WORK_LEFT, [])) + at_handles
        wanted = target_replicas(work_left, sum(latest.get(OFFERED, [])), self._target_seconds)
        if ctx.total_num_requests > 0:
            wanted = max(wanted, 1)  # also where nothing is known of their work
        return wanted, {SECONDS_A_JOB: seconds_a_job}
