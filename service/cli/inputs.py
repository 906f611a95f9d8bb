"""The settings and the model of a command, with mistakes reported as `UserError`."""

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import UnknownModel
from safelight.service.cli import UserError
from safelight.service.served_model import find_served_model, find_served_models
from safelight.service.setting_types import BadSetting
from safelight.service.settings import Settings, read_settings


def settings_of(**flags: object) -> Settings:
    """The settings, where a flag of None is left to the environment. Raises `UserError`."""
    try:
        return read_settings(flags)
    except BadSetting as error:
        raise UserError(str(error)) from None


def model_of(settings: Settings) -> ModelInfo:
    """The model that the settings name, of several the first. Raises `UserError`."""
    try:
        return find_served_model(settings)
    except (UnknownModel, BadSetting) as error:
        raise UserError(str(error)) from None


def models_of(settings: Settings) -> tuple[ModelInfo, ...]:
    """All models that the settings name. Raises `UserError`."""
    try:
        return find_served_models(settings)
    except (UnknownModel, BadSetting) as error:
        raise UserError(str(error)) from None
