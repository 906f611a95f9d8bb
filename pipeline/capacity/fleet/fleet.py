"""The input of the simulator: a fleet of denoisers and the classes of requests that it serves."""

from collections.abc import Sequence
from dataclasses import dataclass

from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve


@dataclass(frozen=True, slots=True)
class RequestClass:
    """Requests whose images cost the same.

    Attributes:
        rows: rows of the image in each tick.
        work: operations of each tick.
        tokens: image tokens of a row.
        other_stage_seconds: seconds of the image in the encode and decode stages.
        share: weight of this class among the requests.
    """

    rows: tuple[int, ...]
    work: tuple[float, ...]
    tokens: int
    other_stage_seconds: float
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """A fleet of denoisers, one GPU each.

    Attributes:
        gpus: most replicas.
        curve: seconds of a tick by its operations.
        limits: rows and tokens of a tick.
        request_classes: what requests ask for.
        min_gpus: fewest replicas.
        target_seconds: seconds of queued work for each replica that the autoscaling allows.
        upscale_delay: seconds for which more replicas must be asked for before any is started.
        downscale_delay: seconds for which fewer replicas must be asked for before any is stopped.
        startup_seconds: from the decision to start a replica until it takes images: a node and its weights.
        node_mtbf_seconds: mean time to failure of a node; 0: no node fails.
        max_in_flight: most images in the fleet, others are refused; 0: no bound.
        deadline: seconds after which an image has expired.
        stride: ticks between two batch selections of a replica.
        scaling_interval_seconds: seconds between two autoscaling decisions.
    """

    gpus: int
    curve: CostCurve
    limits: Limits
    request_classes: tuple[RequestClass, ...]
    min_gpus: int = 1
    target_seconds: float = 5.0
    upscale_delay: float = 15.0
    downscale_delay: float = 600.0
    startup_seconds: float = 120.0
    node_mtbf_seconds: float = 0.0
    max_in_flight: int = 0
    deadline: float = 300.0
    stride: int = 1
    scaling_interval_seconds: float = 1.0


def mean_denoise_seconds(request_classes: Sequence[RequestClass], curve: CostCurve) -> float:
    """Device-seconds of an image alone in the denoiser, averaged over the request classes by their shares."""
    total_share = sum(requests.share for requests in request_classes)
    seconds = sum(requests.share * sum(map(curve.seconds_for, requests.work)) for requests in request_classes)
    return seconds / total_share
