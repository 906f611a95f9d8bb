"""The models that the settings describe: their folders, their names, what is read of them, their defaults."""

from collections import Counter
from collections.abc import Mapping, Sequence

from safelight.models.checkpoints.read_options import ReadOptions
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.catalog.request_defaults import RequestDefaults, with_defaults
from safelight.pipeline.catalog.served_models import find_model
from safelight.pipeline.errors import InvalidParams
from safelight.service.model_values import EVERY_MODEL, parse_model_values, value_for
from safelight.service.setting_types import BadSetting, parse_served_name
from safelight.service.settings import Settings

# The setting of each parameter that an operator's default may make impossible.
SETTINGS_OF_PARAMS = {
    "num_steps": "default_steps",
    "guidance_scale": "default_guidance",
    "solver": "default_solver",
    "size": "default_size",
}


def find_served_models(settings: Settings) -> tuple[ModelInfo, ...]:
    """The models of `settings`, the default first.

    Raises `UnknownModel` if one cannot be served, and `BadSetting` for a default that one cannot serve, for a
    setting without a value for any of them, and for two models of one name.
    """
    names = settings.models
    if len(names) > 1 and EVERY_MODEL in _served_names(settings):
        raise BadSetting(
            f"served_name must say which of the {len(names)} models it names: NAME=SERVED_NAME, "
            f"got {settings.served_name!r}"
        )
    models = [_find(settings, name) for name in names]
    _check_values(settings, [name for model in models for name in model.names])
    check_names(models)
    return tuple(_with_defaults(settings, model) for model in models)


def find_served_model(settings: Settings) -> ModelInfo:
    """The first model of `settings`, which serves requests that name none.

    Raises `UnknownModel` and `BadSetting` as `find_served_models` does; the other models are not read.
    """
    model = _find(settings, settings.models[0])
    if len(settings.models) == 1:
        _check_values(settings, model.names)
    return _with_defaults(settings, model)


def find_model_to_add(settings: Settings, values: Mapping[str, str]) -> ModelInfo:
    """A model that is added to those of `settings`.

    Args:
        settings: The service's settings, whose values by the names of models may name it, too.
        values: The setting `model`, and `served_name` and defaults for this model alone.

    Raises:
        BadSetting: A value is invalid, or a default that the model cannot serve.
        UnknownModel: There is no such model, or it cannot be served.
    """
    served_names = {name: text for name, text in _served_names(settings).items() if name != EVERY_MODEL}
    names = ",".join(f"{name}={text}" for name, text in served_names.items())
    changed = settings.updated(**{"served_name": names, **values})
    return _with_defaults(changed, _find(changed, changed.models[0]))


def check_names(models: Sequence[ModelInfo]) -> None:
    """Raise `BadSetting` if two of `models` have one id."""
    counts = Counter(model.id for model in models)
    if shared := [name for name, count in counts.items() if count > 1]:
        raise BadSetting(
            f"two models are called {shared[0]}; give one of them another name with served_name, by its "
            f"folder: FOLDER=NAME"
        )


def read_options(settings: Settings) -> ReadOptions:
    """What is read of the folders of the models."""
    return ReadOptions(settings.variant, settings.allow_unknown_config)


def request_defaults(settings: Settings, names: tuple[str, ...]) -> RequestDefaults:
    """The operator's defaults for the only model, which is called by any of `names`.

    Values for other models are left to the services of those, which may share the setting. Raises
    `BadSetting` for a setting that has values for other models only.
    """
    _check_values(settings, names)
    return _defaults_of(settings, names)


def _defaults_of(settings: Settings, names: Sequence[str]) -> RequestDefaults:
    values = settings.model_defaults()
    return RequestDefaults(
        num_steps=value_for(values["default_steps"], names),
        guidance_scale=value_for(values["default_guidance"], names),
        solver=value_for(values["default_solver"], names),
        size=value_for(values["default_size"], names),
    )


def _find(settings: Settings, name: str) -> ModelInfo:
    """The model `name` of the settings, under the name that they give it."""
    served_names = _served_names(settings)
    options = read_options(settings)
    model = find_model(name, options, served_names.get(EVERY_MODEL, ""))
    served_name = value_for(served_names, (name, model.id))
    return model if served_name in (None, model.id) else find_model(name, options, str(served_name))


def _served_names(settings: Settings) -> dict[str, str]:
    return parse_model_values(settings.served_name, parse_served_name)


def _check_values(settings: Settings, names: Sequence[str]) -> None:
    """Raise `BadSetting` for a setting that has values only for models that are not called `names`."""
    for setting, by_name in settings.model_defaults().items():
        if by_name and value_for(by_name, names) is None:
            raise BadSetting(f"{setting} has no value for {names[0]}, only for {', '.join(by_name)}")


def _with_defaults(settings: Settings, model: ModelInfo) -> ModelInfo:
    try:
        return with_defaults(model, _defaults_of(settings, model.names))
    except InvalidParams as error:
        name = SETTINGS_OF_PARAMS.get(error.param, error.param)
        raise BadSetting(str(error).replace(error.param, name, 1)) from None
