"""Solver plans on the device, kept for the next sample with the same solver, steps and size."""

from collections import OrderedDict
from collections.abc import Callable

from safelight.pipeline.diffusion.solvers import Plan, canonical_name
from safelight.pipeline.engine.runner import StepRunner
from safelight.pipeline.engine.sample import DevicePlan
from safelight.pipeline.flops.denoiser import times_flops
from safelight.pipeline.params import GenerationParams

PLANS_KEPT = 64

PlanKey = tuple[str, float, str, int, int, tuple[int, int] | None]


class PlanCache:
    """The PLANS_KEPT most recently used plans.

    Args:
        runner: Computes what the network makes of a plan's times.
        make_plan: Plans a sample; may raise `InvalidParams`.
    """

    def __init__(self, runner: StepRunner, make_plan: Callable[[GenerationParams], Plan]):
        self._runner = runner
        self._make_plan = make_plan
        self._plans: OrderedDict[PlanKey, DevicePlan] = OrderedDict()

    def get(self, params: GenerationParams) -> tuple[DevicePlan, int]:
        """The plan of a sample and the operations that it took now, none if it was cached.

        The first sample of a plan pays for it. Raises `InvalidParams` if `params` cannot be planned.
        """
        key = self._key(params)
        if key in self._plans:
            self._plans.move_to_end(key)
            return self._plans[key], 0
        plan = self._make_plan(params)
        self._plans[key] = DevicePlan(
            key, plan, self._runner.updates(plan), self._runner.times(plan, (params.height, params.width))
        )
        if len(self._plans) > PLANS_KEPT:
            self._plans.popitem(last=False)
        return self._plans[key], times_flops(self._runner.network.config, plan.nfe)

    def _key(self, params: GenerationParams) -> PlanKey:
        name = params.solver if params.eta else canonical_name(params.solver)
        size = (params.height, params.width) if self._runner.network.config.is_sized else None
        return name, params.eta, params.timestep_spacing, params.num_steps, params.steps_taken, size
