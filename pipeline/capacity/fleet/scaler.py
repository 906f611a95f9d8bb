"""The scaling of a stage as Ray Serve carries it out: our rule, within bounds, after it has asked for the same for a while."""

from dataclasses import dataclass, field

from safelight.pipeline.scheduling.autoscaling import OfferedLoad, target_replicas


@dataclass(slots=True)
class Scaler:
    """`weight` replicas stand behind each that is simulated."""

    least: int
    most: int
    target_seconds: float
    upscale_delay: float
    downscale_delay: float
    weight: float = 1.0
    target: int = 0
    _offered: OfferedLoad = field(default_factory=OfferedLoad)
    _since: float | None = None  # when it began to ask for more, or for less
    _wants_more: bool = False

    def __post_init__(self) -> None:
        self.target = max(self.target, self.least)

    def decide(self, now: float, work_left: float, come: float) -> int:
        """The replicas that there should be, when `work_left` device-seconds are there and `come` have come since the start."""
        offered = self._offered.observe(come, now)
        asked = target_replicas(work_left * self.weight, offered * self.weight, self.target_seconds)
        wanted = min(max(-(-asked // max(1, round(self.weight))), self.least), self.most)
        return self._after_delay(now, wanted)

    def _after_delay(self, now: float, wanted: int) -> int:
        if wanted == self.target:
            self._since = None
            return self.target
        wants_more = wanted > self.target
        if self._since is None or wants_more != self._wants_more:
            self._since, self._wants_more = now, wants_more
        if now - self._since + 1e-6 >= (self.upscale_delay if wants_more else self.downscale_delay):
            # to none only from one, as in Serve
            self.target, self._since = (wanted if wants_more or self.target == 1 else max(1, wanted)), None
        return self.target
