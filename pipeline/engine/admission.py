"""Turns requests into queued samples with their workload, and refuses those that exceed the limits."""

from collections.abc import Sequence
from dataclasses import dataclass

from safelight.models.networks.interface import NetworkConfig
from safelight.pipeline.diffusion.guidance import Guide, guides
from safelight.pipeline.diffusion.solvers import Plan
from safelight.pipeline.engine.plan_cache import PlanCache
from safelight.pipeline.engine.runner import padded_length
from safelight.pipeline.engine.sample import QueuedSample
from safelight.pipeline.engine.text_encoder import TextStates
from safelight.pipeline.errors import InvalidParams
from safelight.pipeline.flops.denoiser import forward_flops
from safelight.pipeline.params import NOT_URGENT, GenerationParams, Urgency
from safelight.pipeline.scheduling.batcher import Limits
from safelight.pipeline.scheduling.cost_curve import CostCurve
from safelight.pipeline.scheduling.workload import SampleWorkload, make_workload


@dataclass(frozen=True, slots=True)
class Admission:
    """Admits requests to an engine: plans each and computes its workload."""

    plans: PlanCache
    config: NetworkConfig
    latent_scale: int  # pixels on a side of one latent pixel
    limits: Limits

    def latent_size(self, width: int, height: int) -> tuple[int, int]:
        """(H, W) of the latents of an image of `width` x `height` pixels."""
        return height // self.latent_scale, width // self.latent_scale

    def row_flops(self, width: int, height: int) -> int:
        """The operations of one row in one tick, for an image of `width` x `height` pixels without a text."""
        return forward_flops(self.config, *self.latent_size(width, height), 0)

    def admit(
        self,
        request_id: str,
        params: GenerationParams,
        cond: TextStates,
        uncond: TextStates | None,
        curve: CostCurve,
        arrived: float,
        deadline: float,
        urgency: Urgency = NOT_URGENT,
    ) -> QueuedSample:
        """The queued sample of a request.

        Args:
            request_id: As in `Engine.add`, as are the arguments that are not listed and the errors.
            curve: The cost curve at present, which gives the workload its seconds.
            arrived: When the request arrived, seconds by `time.perf_counter`.
        """
        plan, setup_flops = self.plans.get(params)
        tick_guides = _guides(params, plan.plan)
        texts = _needed_texts(tick_guides, cond, uncond)
        height, width = self.latent_size(params.width, params.height)
        cond_flops, uncond_flops = (
            0 if text is None else forward_flops(self.config, height, width, padded_length(text.mask))
            for text in texts
        )
        workload = make_workload(
            rows=[sum(guide.rows) for guide in tick_guides],
            work=[guide.rows[0] * cond_flops + guide.rows[1] * uncond_flops for guide in tick_guides],
            tokens=(height // self.config.patch_size) * (width // self.config.patch_size),
            curve=curve,
            arrived=arrived,
            deadline=deadline,
            urgency=urgency,
        )
        self._check_tokens(params, workload)
        return QueuedSample(request_id, params, plan, tick_guides, *texts, workload, setup_flops)

    def _check_tokens(self, params: GenerationParams, workload: SampleWorkload) -> None:
        """Raise `InvalidParams` if a tick of this sample alone would exceed `limits.max_tokens`."""
        tokens, max_tokens = max(workload.rows) * workload.tokens, self.limits.max_tokens
        if tokens > max_tokens:
            size = f"{params.width}x{params.height}"
            raise InvalidParams(
                "size",
                f"an image of {size} takes {tokens} tokens in a tick, and this engine at most {max_tokens}",
            )


def _guides(params: GenerationParams, plan: Plan) -> tuple[Guide, ...]:
    """The guidance of each tick of a sample."""
    times = (tick.t for tick in plan.ticks)
    return guides(times, params.guidance_scale, params.guidance_interval, params.guidance_stride)


def _needed_texts(
    tick_guides: Sequence[Guide], cond: TextStates, uncond: TextStates | None
) -> tuple[TextStates | None, TextStates | None]:
    """`cond` and `uncond`, each only if a tick needs it. Raises `ValueError` if a needed one is missing."""
    needs_cond, needs_uncond = (
        any(is_needed) for is_needed in zip(*(guide.rows for guide in tick_guides), strict=True)
    )
    if needs_uncond and uncond is None:
        raise ValueError("a guided sample needs the states of its negative prompt")
    return cond if needs_cond else None, uncond if needs_uncond else None
