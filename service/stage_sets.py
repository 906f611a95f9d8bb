"""Which deployments serve which model: a denoiser for each, one encoder or decoder for all of equal files."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from safelight.pipeline.capacity.model_profiles import model_profile
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.shared_parts import has_same_autoencoder, has_same_text_encoder
from safelight.service.settings import Settings

ENCODER, DENOISER, DECODER, COLOCATED = "TextEncoder", "Denoiser", "VaeDecoder", "Colocated"
NAME_CHARACTERS = 48  # of a model's id in a deployment's name


@dataclass(frozen=True, slots=True)
class StageSet:
    """A served model, and the names of the deployments of its stages.

    The three names are one where a replica holds all stages.
    """

    model: ModelInfo
    encode: str
    denoise: str
    decode: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells this set from another of the same model."""
        return self.model.id, self.encode, self.denoise, self.decode

    @property
    def deployments(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.encode, self.denoise, self.decode)))


def plan_stages(
    models: Iterable[ModelInfo], settings: Settings, running: Sequence[StageSet] = ()
) -> tuple[StageSet, ...]:
    """The stages of `models`, the first model's with the plainest names.

    Args:
        models: The models that need stages.
        settings: The service's settings.
        running: Sets whose deployments exist. Their names are not used again; equal stages are shared.
    """
    sets: list[StageSet] = []
    for model in models:
        sets.append(_plan(model, settings, (*running, *sets)))
    return tuple(sets)


def with_set(served: Sequence[StageSet], stages: StageSet) -> tuple[StageSet, ...]:
    """`served` with `stages` in the place of the set of the same model, or at the end."""
    ids = [other.model.id for other in served]
    if stages.model.id not in ids:
        return (*served, stages)
    return tuple(stages if other.model.id == stages.model.id else other for other in served)


def without_model(served: Sequence[StageSet], model_id: str) -> tuple[StageSet, ...]:
    """`served` without the set of one model."""
    return tuple(other for other in served if other.model.id != model_id)


def served_by(sets: Iterable[StageSet], deployment: str) -> list[ModelInfo]:
    """The models in `sets` that a deployment serves; the first is the one that it loads."""
    return [stages.model for stages in sets if deployment in stages.deployments]


def _plan(model: ModelInfo, settings: Settings, others: Sequence[StageSet]) -> StageSet:
    taken = {name for other in others for name in other.deployments}

    def name(stage: str) -> str:
        return _free_name(stage, model, taken)

    if settings.stages == "colocated":
        colocated = name(COLOCATED)
        return StageSet(model, colocated, colocated, colocated)
    stages = StageSet(model, name(ENCODER), name(DENOISER), name(DECODER))
    if encoder := _find(others, lambda other: has_same_text_encoder(other, model)):
        stages = replace(stages, encode=encoder.encode)
    if decoder := _find(others, lambda other: _has_same_decoder(other, model)):
        stages = replace(stages, decode=decoder.decode)
    return stages


def _find(others: Sequence[StageSet], is_same: Callable[[ModelInfo], bool]) -> StageSet | None:
    return next((other for other in others if is_same(other.model)), None)


def _has_same_decoder(one: ModelInfo, other: ModelInfo) -> bool:
    """Whether one decoder draws the bytes of both: also their native images must be of one size.

    The size decides the number of the decoder's threads, on which bits may depend.
    """
    scales = {model_profile(model).scale for model in (one, other)}
    return one.native_size == other.native_size and len(scales) == 1 and has_same_autoencoder(one, other)


def _free_name(stage: str, model: ModelInfo, taken: Iterable[str]) -> str:
    """The name of a deployment that is not taken; Serve allows few characters in names."""
    if stage not in taken:
        return stage
    plain = f"{stage}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', model.id)[:NAME_CHARACTERS]}"
    numbered = (f"{plain}-{number}" for number in range(2, len(tuple(taken)) + 3))
    return next(name for name in (plain, *numbered) if name not in taken)
