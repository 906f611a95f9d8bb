"""The models that can be served, for the gateway and the command line. No torch is imported here."""

from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.families.registry import list_families
from safelight.models.families.spec import Family
from safelight.models.find_checkpoint import EMBEDDED, Checkpoint, find_checkpoint
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.schedule_config import read_schedule
from safelight.pipeline.diffusion.solvers import ALIASES, SERVED, SOLVERS
from safelight.pipeline.diffusion.spacing import SPACINGS

__all__ = ["Family", "UnknownModel", "find_model", "list_families", "list_models"]


class UnknownModel(ValueError):
    """A model that cannot be served; the message says why and which models there are."""


def list_models() -> list[ModelInfo]:
    """The embedded models."""
    return [find_model(name) for name in EMBEDDED]


def find_model(name_or_dir: str) -> ModelInfo:
    """An embedded model by name, `tiny`, or a checkpoint folder. Raises `UnknownModel` with the fault."""
    try:
        return _describe(find_checkpoint(name_or_dir))
    except CheckpointError as error:
        raise UnknownModel(str(error)) from None


def _describe(checkpoint: Checkpoint) -> ModelInfo:
    family = checkpoint.family
    schedule, prediction = read_schedule(checkpoint.folder)
    served = [name for name in SERVED if schedule.family in SOLVERS[name].families]
    return ModelInfo(
        id=checkpoint.id,
        path=checkpoint.folder,
        family=family.name,
        licence=checkpoint.licence,
        sizes=checkpoint.sizes,
        num_steps=family.num_steps,
        guidance_scale=family.guidance_scale,
        solver=family.solver,
        solvers=(*served, *(alias for alias, name in ALIASES.items() if name in served)),
        timestep_spacing=family.timestep_spacing,
        spacings=tuple(SPACINGS),
        schedule=schedule,
        prediction=prediction,
        labels=family.conditioning.read_labels(checkpoint.folder),
    )
