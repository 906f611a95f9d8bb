"""Starts samples: puts a waiting one on the device, with the network's rows of its texts."""

from safelight.models.networks.interface import Row
from safelight.pipeline.engine.device_clock import DeviceClock, Mark
from safelight.pipeline.engine.previews import preview_ticks
from safelight.pipeline.engine.runner import StepRunner
from safelight.pipeline.engine.sample import Charged, QueuedSample, RunningSample, start_state
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.flops.denoiser import row_flops, text_flops


def start_sample(
    queued: QueuedSample, runner: StepRunner, shape: tuple[int, int, int], started: float
) -> RunningSample:
    """The sample of a waiting one. What that computes is charged to it.

    Args:
        queued: The waiting sample.
        runner: The network.
        shape: (C, H, W) of its latents.
        started: The present, by `time.perf_counter`.
    """
    start, params, plan = runner.clock.mark(), queued.params, queued.plan
    cond, uncond = (
        None if text is None else _row(text, queued, runner) for text in (queued.cond, queued.uncond)
    )
    source = None if queued.source is None else queued.source.noised(params, runner.device)
    sample = RunningSample(
        request_id=queued.request_id,
        params=params,
        plan=plan.plan,
        updates=plan.updates,
        guides=queued.guides,
        cond=cond,
        uncond=uncond,
        workload=queued.workload,
        queue_seconds=started - queued.workload.arrived,
        state=start_state(params, plan.plan, shape, runner.device, source),
        source=source,
        setup_flops=queued.setup_flops,
        device_seconds=queued.device_seconds,
        spans=queued.spans,
        previews=preview_ticks(queued.workload.work, queued.previews),
    )
    charge(sample, start, runner.clock)
    return sample


def charge(sample: Charged, start: Mark, clock: DeviceClock) -> None:
    """Charge a sample for what was computed since `start` for it alone."""
    sample.spans.append((start, clock.mark()))
    if not clock.runs_ahead:
        sample.settle()


def _row(text: TextStates, queued: QueuedSample, runner: StepRunner) -> Row:
    """The network's row of a text under a plan; the first sample with either pays for it."""
    plan, config = queued.plan, runner.network.config
    row, is_new_text, is_new_row = runner.row(text, plan.times, plan.key)
    queued.setup_flops += is_new_text * text_flops(config, row.text_tokens)
    queued.setup_flops += is_new_row * row_flops(config, row.text_tokens, plan.plan.nfe)
    return row
