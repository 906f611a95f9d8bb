"""What can be served, as the gateway and the command line see it. No torch here."""

from safelight.models.checkpoints.families import EMBEDDED, FAMILIES, Checkpoint, Family, find_checkpoint
from safelight.models.checkpoints.json_files import CheckpointError
from safelight.models.text.label import Labels
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.schedule_config import read_schedule
from safelight.pipeline.diffusion.solvers import ALIASES, SERVED, SOLVERS
from safelight.pipeline.diffusion.spacing import SPACINGS

__all__ = ["Family", "UnknownModel", "find_model", "list_families", "list_models"]


class UnknownModel(ValueError):
    """A model that cannot be served; the message says why and what there is."""


def list_models() -> list[ModelInfo]:
    """The embedded models."""
    return [find_model(name) for name in EMBEDDED]


def list_families() -> tuple[Family, ...]:
    """What a checkpoint folder may be."""
    return FAMILIES


def find_model(name_or_dir: str) -> ModelInfo:
    """An embedded model by name, `tiny`, or a checkpoint folder; raise `UnknownModel` with a clear sentence."""
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
        labels=Labels(checkpoint.folder) if family.has_classes else None,
    )
