"""Autoscaling of a stage as Ray Serve carries it out: the service's policy, within bounds, after a delay."""

from dataclasses import dataclass, field

from safelight.pipeline.scheduling.autoscaling import OfferedLoad, target_replicas

EPSILON_SECONDS = 1e-6


@dataclass(slots=True)
class Scaler:
    """The target number of replicas over time.

    Attributes:
        min_replicas: lower bound of the target.
        max_replicas: upper bound of the target.
        target_seconds: seconds of queued work allowed for each replica.
        upscale_delay: seconds for which more replicas must be asked for before the target rises.
        downscale_delay: seconds for which fewer replicas must be asked for before the target falls.
        weight: replicas of the fleet that each simulated replica stands for.
        target: the current target, in simulated replicas.
    """

    min_replicas: int
    max_replicas: int
    target_seconds: float
    upscale_delay: float
    downscale_delay: float
    weight: float = 1.0
    target: int = 0
    _offered: OfferedLoad = field(default_factory=OfferedLoad)
    _change_since: float | None = None  # when the policy began to ask for more, or for fewer
    _is_upscale: bool = False

    def __post_init__(self) -> None:
        self.target = max(self.target, self.min_replicas)

    def decide(self, now: float, queued_work: float, offered_total: float) -> int:
        """The target number of simulated replicas.

        Args:
            now: simulated time in seconds.
            queued_work: device-seconds of work in the simulated replicas and their queue.
            offered_total: device-seconds of work that arrived since the start.
        """
        offered = self._offered.observe(offered_total, now)
        fleet_target = target_replicas(queued_work * self.weight, offered * self.weight, self.target_seconds)
        simulated_target = -(-fleet_target // max(1, round(self.weight)))  # rounded up
        return self._after_delay(now, min(max(simulated_target, self.min_replicas), self.max_replicas))

    def _after_delay(self, now: float, requested: int) -> int:
        if requested == self.target:
            self._change_since = None
            return self.target
        is_upscale = requested > self.target
        if self._change_since is None or is_upscale != self._is_upscale:
            self._change_since, self._is_upscale = now, is_upscale
        delay = self.upscale_delay if is_upscale else self.downscale_delay
        if now - self._change_since + EPSILON_SECONDS >= delay:
            # As in Serve, only a single replica may go down to none.
            self.target = requested if is_upscale or self.target == 1 else max(1, requested)
            self._change_since = None
        return self.target
