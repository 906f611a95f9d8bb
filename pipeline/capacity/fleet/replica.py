"""The moving parts of the simulator: images, and the replicas that denoise them."""

from dataclasses import dataclass, field

from safelight.pipeline.scheduling.queue import WaitingQueue
from safelight.pipeline.scheduling.simulation import SimulatedSample


@dataclass(slots=True, eq=False)
class SimulatedImage(SimulatedSample):
    """An image in the fleet.

    Attributes:
        other_stage_seconds: seconds of the image in the encode and decode stages.
        is_retry: whether its first replica failed.
        ticks_under_way: ticks by which it advances when its replica's current run ends.
    """

    other_stage_seconds: float = 0.0
    is_retry: bool = False
    ticks_under_way: int = 0


@dataclass(slots=True, eq=False)
class SimulatedReplica:
    """A denoiser with its images.

    Attributes:
        started_at: simulated time in seconds at which it began to take images.
        queue: images of which no tick has run.
        running: images of which ticks have run.
        batch: the images of the ticks under way; empty when the replica is idle.
        is_leaving: whether it is being scaled down: it finishes its images and takes no new ones.
        is_gone: whether its node failed or it has left.
    """

    started_at: float
    queue: WaitingQueue[SimulatedImage]
    running: list[SimulatedImage] = field(default_factory=list)
    batch: list[SimulatedImage] = field(default_factory=list)
    is_leaving: bool = False
    is_gone: bool = False

    @property
    def num_images(self) -> int:
        return len(self.running) + len(self.queue)

    @property
    def remaining_work(self) -> float:
        """Device-seconds that its images take one by one."""
        return sum(image.seconds_left for image in self.running) + sum(
            image.seconds_left for image in self.queue
        )
