"""Where settings come from besides arguments: the environment and a folder of files."""

from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource, SecretsSettingsSource

from safelight.service.runtime.ignored_variables import is_ignored


class EnvironmentSource(EnvSettingsSource):
    """The environment, without variables that set nothing."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return _without_ignored(super().get_field_value(field, field_name))


class FolderSource(SecretsSettingsSource):
    """The folder `secrets_dir`, without files that set nothing."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return _without_ignored(super().get_field_value(field, field_name))


def _without_ignored(field_value: tuple[Any, str, bool]) -> tuple[Any, str, bool]:
    value, key, is_complex = field_value
    return (None if isinstance(value, str) and is_ignored(value) else value), key, is_complex
