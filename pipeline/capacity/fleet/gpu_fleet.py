"""A fleet of one GPU type that serves one request class, by the operations a second that a GPU reaches."""

from safelight.pipeline.capacity.fleet.fleet import Fleet, RequestClass
from safelight.pipeline.capacity.image_cost import ImageCost
from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve

# The share of a lone image's tick that does not grow with the batch: on an H100 a batch of sixteen images of
# PixArt-Sigma is 1.10 times as fast as the images one by one (ML.ENERGY Leaderboard v3).
FIXED_SHARE = 0.09
BATCH_SIZES = (1, 2, 4, 8, 16)


def gpu_fleet(
    gpus: int,
    cost: ImageCost,
    flops: float,
    *,
    max_rows: int,
    min_gpus: int,
    target_seconds: float,
    startup_seconds: float,
    node_mtbf_seconds: float,
    scaling_interval_seconds: float,
) -> Fleet:
    """A fleet of GPUs for images of one cost.

    Args:
        gpus: most GPUs.
        cost: operations of an image.
        flops: operations a second that a GPU reaches.
        max_rows: rows of a tick.
        min_gpus: fewest GPUs, at most `gpus`.
        target_seconds: seconds of queued work for each GPU that the autoscaling allows.
        startup_seconds: from the decision to start a GPU until it takes images.
        node_mtbf_seconds: mean time to failure of a node; 0: no node fails.
        scaling_interval_seconds: seconds between two autoscaling decisions.
    """
    return Fleet(
        gpus=gpus,
        curve=_batch_curve(cost, flops),
        limits=Limits(max_rows, max_rows * cost.tokens),
        request_classes=(_request_class(cost, flops),),
        min_gpus=min(min_gpus, gpus),
        target_seconds=target_seconds,
        startup_seconds=startup_seconds,
        node_mtbf_seconds=node_mtbf_seconds,
        stride=len(cost.ticks),  # a batch is selected when an image finishes: 20 times as fast to simulate
        scaling_interval_seconds=scaling_interval_seconds,
    )


def _batch_curve(cost: ImageCost, flops: float) -> CostCurve:
    """Seconds of a tick of so many images of `cost`, by its operations."""
    tick_work = cost.ticks[0]
    return CostCurve(
        tuple(tick_work * images for images in BATCH_SIZES),
        tuple((FIXED_SHARE + (1.0 - FIXED_SHARE) * images) * tick_work / flops for images in BATCH_SIZES),
    )


def _request_class(cost: ImageCost, flops: float) -> RequestClass:
    return RequestClass(
        rows=(cost.rows,) * len(cost.ticks),
        work=cost.ticks,
        tokens=cost.tokens,
        other_stage_seconds=(cost.encode + cost.decode) / flops,
    )
