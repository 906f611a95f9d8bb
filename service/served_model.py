"""The model that the settings describe: its folder, its name, what is read of it, and its defaults."""

from safelight.models.checkpoints.read_options import ReadOptions
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.request_defaults import RequestDefaults, with_defaults
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.errors import InvalidParams
from safelight.service.model_values import value_for
from safelight.service.setting_types import BadSetting
from safelight.service.settings import Settings

# The setting of each parameter that an operator's default may make impossible.
SETTINGS_OF_PARAMS = {
    "num_steps": "default_steps",
    "guidance_scale": "default_guidance",
    "solver": "default_solver",
    "size": "default_size",
}


def find_served_model(settings: Settings) -> ModelInfo:
    """The model of `settings`.

    Raises `UnknownModel` if it cannot be served, and `BadSetting` for a default that it cannot serve.
    """
    model = find_model(settings.model, read_options(settings), settings.served_name)
    defaults = request_defaults(settings, model.names)
    try:
        return with_defaults(model, defaults)
    except InvalidParams as error:
        name = SETTINGS_OF_PARAMS.get(error.param, error.param)
        raise BadSetting(str(error).replace(error.param, name, 1)) from None


def read_options(settings: Settings) -> ReadOptions:
    """What is read of the model's folder."""
    return ReadOptions(settings.variant, settings.allow_unknown_config)


def request_defaults(settings: Settings, names: tuple[str, ...]) -> RequestDefaults:
    """The operator's defaults for the model that is called by any of `names`.

    Values for other models are left to the services of those, which may share the setting. Raises
    `BadSetting` for a setting that has values for other models only.
    """
    values = settings.model_defaults()
    for setting, by_name in values.items():
        if by_name and value_for(by_name, names) is None:
            raise BadSetting(f"{setting} has no value for {names[0]}, only for {', '.join(by_name)}")
    return RequestDefaults(
        num_steps=value_for(values["default_steps"], names),
        guidance_scale=value_for(values["default_guidance"], names),
        solver=value_for(values["default_solver"], names),
        size=value_for(values["default_size"], names),
    )
