"""What every command asks first: which settings, which model."""

from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.served_models import UnknownModel, find_model
from safelight.service.cli import UserError
from safelight.service.settings import BadSetting, Settings, read_settings


def settings_of(**given: object) -> Settings:
    try:
        return read_settings(given)
    except BadSetting as error:
        raise UserError(str(error)) from None


def model_of(settings: Settings) -> ModelInfo:
    try:
        return find_model(settings.model)
    except UnknownModel as error:
        raise UserError(str(error)) from None
