"""The models that can be served, for the gateway and the command line. No torch is imported here."""

from dataclasses import replace
from pathlib import Path

from safelight.models.autoencoders.options import read_options as read_autoencoder
from safelight.models.checkpoints.json_files import CheckpointError, read_json
from safelight.models.checkpoints.options import read_known
from safelight.models.checkpoints.read_options import DEFAULT_READ_OPTIONS, ReadOptions
from safelight.models.families.registry import list_families
from safelight.models.families.spec import Family
from safelight.models.find_checkpoint import EMBEDDED, TINY, Checkpoint, Distillation, find_checkpoint
from safelight.pipeline.catalog.model_info import NO_GUIDANCE, ModelInfo
from safelight.pipeline.catalog.schedule_config import read_schedule
from safelight.pipeline.diffusion.solvers import ALIASES, SERVED, SOLVERS
from safelight.pipeline.diffusion.spacing import SPACINGS

__all__ = ["Family", "UnknownModel", "find_model", "list_families", "list_model_names", "list_models"]


class UnknownModel(ValueError):
    """A model that cannot be served; the message says why and which models there are."""


def list_models() -> list[ModelInfo]:
    """The embedded models."""
    return [find_model(name) for name in EMBEDDED]


def list_model_names() -> tuple[str, ...]:
    """The names of models that need no folder."""
    return (*EMBEDDED, TINY)


def find_model(
    name_or_dir: str, read_options: ReadOptions = DEFAULT_READ_OPTIONS, served_name: str = ""
) -> ModelInfo:
    """A model that can be served, with its family's defaults.

    Args:
        name_or_dir: an embedded model, `tiny`, a checkpoint folder, or an id in the Hugging Face cache.
        read_options: the choices about reading its folder.
        served_name: the name under which it is served; empty: its own.

    Raises:
        UnknownModel: with the fault.
    """
    try:
        model = _describe(find_checkpoint(name_or_dir, read_options.variant), read_options)
    except CheckpointError as error:
        raise UnknownModel(str(error)) from None
    if served_name in ("", model.id):
        return model
    return replace(model, id=served_name, checkpoint_id=model.id)


def _describe(checkpoint: Checkpoint, read_options: ReadOptions) -> ModelInfo:
    family = checkpoint.family
    schedule, prediction = read_schedule(checkpoint.folder)
    served = [name for name in SERVED if schedule.family in SOLVERS[name].families]
    read_options = replace(read_options, variant=checkpoint.variant)
    model = ModelInfo(
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
        read_options=read_options,
        has_edits=_has_edits(checkpoint.folder, read_options),
    )
    return _with_distillation(model, checkpoint.distillation) if checkpoint.distillation else model


def _with_distillation(model: ModelInfo, distillation: Distillation) -> ModelInfo:
    return replace(
        model,
        num_steps=distillation.max_steps,
        max_steps=distillation.max_steps,
        guidance_scale=NO_GUIDANCE,
        has_distilled_guidance=True,
        solver=distillation.solvers[0],
        solvers=distillation.solvers,
    )


def _has_edits(folder: Path, choices: ReadOptions) -> bool:
    path = folder / "vae" / "config.json"
    try:
        options = read_known(read_autoencoder, read_json(path), path, choices)
    except CheckpointError:
        return False  # the model is refused when it is checked, which says why
    return options.encoder_scale == options.decoder_scale
