"""A fleet of one kind of GPU, by its maker's peak and the share of it that is reached."""

from safelight.pipeline.capacity.fleet.simulator import Fleet, RequestClass
from safelight.pipeline.capacity.image_cost import ImageCost
from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve

# Of a lone image's tick, what a batch shares: on an H100 sixteen images of PixArt-Sigma at once are drawn 1.10 times as fast as
# one by one (ML.ENERGY Leaderboard v3).
FIXED = 0.09
IMAGES = (1, 2, 4, 8, 16)


def fleet_of(
    gpus: int,
    work: ImageCost,
    flops: float,
    max_rows: int,
    least: int,
    target_seconds: float,
    start: float,
    mean_life: float,
    control: float,
) -> Fleet:
    """Of GPUs that reach `flops` operations a second, all drawing images of `work`; the rest as `Fleet` has it."""
    tick = work.ticks[0]
    curve = CostCurve(
        tuple(tick * images for images in IMAGES),
        tuple((FIXED + (1.0 - FIXED) * images) * tick / flops for images in IMAGES),
    )
    return Fleet(
        gpus=gpus,
        curve=curve,
        limits=Limits(max_rows, max_rows * work.tokens),
        kinds=(
            RequestClass(
                (work.rows,) * len(work.ticks), work.ticks, work.tokens, (work.encode + work.decode) / flops
            ),
        ),
        least=min(least, gpus),
        target_seconds=target_seconds,
        start=start,
        mean_life=mean_life,
        stride=len(
            work.ticks
        ),  # who runs is chosen anew when somebody is done: at each tick it would take twenty times as long
        control=control,
    )
