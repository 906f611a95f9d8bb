"""The settings and the model of a command, with mistakes reported as `UserError`."""

import os

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import UnknownModel
from safelight.service.cli import UserError
from safelight.service.served_model import find_served_model, find_served_models
from safelight.service.setting_types import BadSetting
from safelight.service.settings import Settings, read_settings

KEY_VARIABLE = "SAFELIGHT_KEY"  # as in the code that the page shows


def key_headers() -> dict[str, str]:
    """The headers with which a command asks a service that needs an API key, if the environment has one."""
    key = os.environ.get(KEY_VARIABLE)
    return {"authorization": f"Bearer {key}"} if key else {}


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
