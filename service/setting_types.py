"""The types of the settings: what each kind of value may be, in sentences that name the setting."""

import base64
import binascii
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr, ValidationInfo

from safelight.service.database.locations import BadDatabase, find_database
from safelight.service.image_store.locations import BadLocation, check_location
from safelight.service.model_values import parse_guidance, parse_model_values, parse_size, parse_steps
from safelight.service.moderation.deny_list import BadDenyList, DenyList

SERVED_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+/-]{0,127}")
PUBLIC_URL = re.compile(r"https?://[A-Za-z0-9.\[\]:_-]+(/[A-Za-z0-9._~/-]*)?")
NO_STORE = "none"  # the value of `image_store` that turns links off
MIN_KEY_CHARACTERS = 32
ALIAS = re.compile(r"[A-Za-z0-9._:@+/*-]{1,128}")
ACCOUNTS_NAME = re.compile(r"[A-Za-z0-9._:@-]{1,64}")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[A-Za-z0-9._~\[\]:-]{1,255}")
HOST_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?")
COUNTER_STORE = re.compile(r"(?:valkey|redis)s?://\S{1,500}")
WEBHOOK_ORIGIN = re.compile(r"https?://(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
SECRET_BYTES = range(24, 65)  # of a secret by Standard Webhooks
ROOT_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+){1,16}")
IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
VARIANT = re.compile(r"[A-Za-z0-9_-]{1,64}")
# How one model's value is parsed, in each setting that may have a value for every model.
MODEL_VALUES: dict[str, Callable[[str], Any]] = {
    "default_steps": parse_steps,
    "default_guidance": parse_guidance,
    "default_solver": str,
    "default_size": parse_size,
}

Number = TypeVar("Number", int, float)


class BadSetting(ValueError):
    """An unknown or invalid setting; the message names it and says what is allowed."""


def _check_positive(value: Number, info: ValidationInfo) -> Number:
    if not 0 < value < math.inf:
        raise ValueError(f"{info.field_name} must be more than 0 and finite, got {value}")
    return value


def _check_not_negative(value: Number, info: ValidationInfo) -> Number:
    if not value >= 0:
        raise ValueError(f"{info.field_name} must be at least 0, got {value}")
    return value


def _check_not_negative_and_finite(value: float, info: ValidationInfo) -> float:
    if not 0 <= value < math.inf:
        raise ValueError(f"{info.field_name} must be at least 0 and finite, got {value}")
    return value


def _check_probability(value: float, info: ValidationInfo) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{info.field_name} must be more than 0 and less than 1, got {value}")
    return value


def check_port(value: int, info: ValidationInfo) -> int:
    if not 0 <= value <= 65535:
        raise ValueError(f"{info.field_name} must be between 0 and 65535, got {value}")
    return value


def check_max_rows(value: int) -> int:
    if value < 2:
        raise ValueError(f"max_rows must be at least 2, the rows of one guided image; got {value}")
    return value


def _check_stage_replicas(value: str, info: ValidationInfo) -> str:
    replica_range(str(info.field_name), value)
    return value


def check_gateway_replicas(value: str) -> str:
    replica_range("gateway_replicas", value, min_replicas=1)
    return value


def check_folder(value: str, info: ValidationInfo) -> str:
    if value and not Path(value).is_dir():
        raise ValueError(f"{info.field_name} must be a folder, got {value!r}")
    return value


def check_served_names(value: str) -> str:
    try:
        if "=" in value:
            parse_model_values(value, parse_served_name)
        elif value:
            parse_served_name(value)
    except ValueError as error:
        raise ValueError(f"served_name {error}") from None
    return value


def parse_served_name(name: str) -> str:
    """`name`, if a model may be served under it; raises `ValueError`."""
    if not (SERVED_NAME.fullmatch(name) and all(name.split("/"))):
        raise ValueError(
            "must be 1 to 128 letters, digits and any of ._:@+/-, with a letter or digit first "
            f"and nothing empty between slashes; got {name[:200]!r}"
        )
    return name


def names_in(value: str) -> tuple[str, ...]:
    """The names in a text that separates them by commas."""
    return tuple(name for part in value.split(",") if (name := part.strip()))


def check_aliases(value: str) -> str:
    for name in names_in(value):
        if not ALIAS.fullmatch(name):
            raise ValueError(
                "aliases must be names of 1 to 128 letters, digits and any of ._:@+/-*, separated by commas; "
                f"got {name[:200]!r}"
            )
    return value


def check_origins(value: str) -> str:
    for origin in names_in(value):
        if origin != "*" and not ORIGIN.fullmatch(origin):
            raise ValueError(
                "cors_origins must be origins such as https://chat.example.com, without a path, separated by "
                f"commas, or *; got {origin[:200]!r}"
            )
    return value


def check_root_path(value: str) -> str:
    if value and not ROOT_PATH.fullmatch(value):
        raise ValueError(
            f"root_path must be a path such as /safelight, without a slash at its end; got {value[:200]!r}"
        )
    return value


def check_variant(value: str) -> str:
    if value and not VARIANT.fullmatch(value):
        raise ValueError(f"variant must be a name such as fp16 or non-ema, got {value[:200]!r}")
    return value


def check_image_store(value: str, info: ValidationInfo) -> str:
    if value in ("", NO_STORE):
        return value
    try:
        return check_location(value)
    except BadLocation as error:
        raise ValueError(f"{info.field_name} {error}; {NO_STORE!r} turns links off") from None


def check_link_key(value: SecretStr, info: ValidationInfo) -> SecretStr:
    if 0 < len(value.get_secret_value()) < MIN_KEY_CHARACTERS:
        raise ValueError(f"{info.field_name} must have at least {MIN_KEY_CHARACTERS} characters")
    return value


def check_file(value: str, info: ValidationInfo) -> str:
    if value and not Path(value).is_file():
        raise ValueError(f"{info.field_name} must be a file, got {value!r}")
    return value


def check_denied_words(value: str, info: ValidationInfo) -> str:
    try:
        if value:
            DenyList.read(value)
    except BadDenyList as error:
        raise ValueError(f"{info.field_name} {value!r} {error}") from None
    return value


def check_import_path(value: str, info: ValidationInfo) -> str:
    if value and not IMPORT_PATH.fullmatch(value):
        raise ValueError(f"{info.field_name} must be as in package.module:name, got {value[:200]!r}")
    return value


def check_database(value: SecretStr, info: ValidationInfo) -> SecretStr:
    text = value.get_secret_value()
    try:
        if text:  # the default folder is found when it is used: a gateway may have no home folder
            find_database(text)
    except BadDatabase as error:
        raise ValueError(f"{info.field_name} {error}") from None
    return value


def check_accounts_name(value: str) -> str:
    if value and not ACCOUNTS_NAME.fullmatch(value):
        raise ValueError(
            f"accounts_name must be 1 to 64 letters, digits or characters of ._:@-, got {value[:200]!r}"
        )
    return value


def check_counter_store(value: SecretStr, info: ValidationInfo) -> SecretStr:
    text = value.get_secret_value()
    if text and not COUNTER_STORE.fullmatch(text):
        raise ValueError(
            f"{info.field_name} must be a URL such as valkey://host:6379/0 or rediss://host:6380"
        )
    return value


def check_webhook_origins(value: str, info: ValidationInfo) -> str:
    for origin in names_in(value):
        if not WEBHOOK_ORIGIN.fullmatch(origin):
            raise ValueError(
                f"{info.field_name} must be origins such as https://hooks.example.org, got {origin[:200]!r}"
            )
    return value


def check_webhook_secret(value: SecretStr, info: ValidationInfo) -> SecretStr:
    text = value.get_secret_value()
    if text:
        try:
            num_bytes = len(base64.b64decode(text.removeprefix("whsec_"), validate=True))
        except binascii.Error:
            num_bytes = 0
        if not text.startswith("whsec_") or num_bytes not in SECRET_BYTES:
            raise ValueError(f"{info.field_name} must be whsec_ and the base64 of 24 to 64 bytes")
    return value


def check_hosts(value: str, info: ValidationInfo) -> str:
    for name in names_in(value):
        if not HOST_NAME.fullmatch(name):
            raise ValueError(
                f"{info.field_name} must be names of hosts such as images.example.org, separated by commas; "
                f"got {name[:200]!r}"
            )
    return value


def check_public_url(value: str, info: ValidationInfo) -> str:
    url = value.rstrip("/")
    if value and not _is_public_url(url):
        raise ValueError(
            f"{info.field_name} must be an http or https URL without query, such as "
            f"https://images.example.org; got {value[:200]!r}"
        )
    return url


def _is_public_url(url: str) -> bool:
    if not PUBLIC_URL.fullmatch(url):
        return False
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # no port, or no IPv6 address
        return False


def _check_model_values(value: str, info: ValidationInfo) -> str:
    try:
        parse_model_values(value, MODEL_VALUES[str(info.field_name)])
    except ValueError as error:
        raise ValueError(f"{info.field_name} {error}") from None
    return value


PositiveInt = Annotated[int, AfterValidator(_check_positive)]
PositiveFloat = Annotated[float, AfterValidator(_check_positive)]
Count = Annotated[int, AfterValidator(_check_not_negative)]
Amount = Annotated[float, AfterValidator(_check_not_negative_and_finite)]
Probability = Annotated[float, AfterValidator(_check_probability)]
StageReplicas = Annotated[str, AfterValidator(_check_stage_replicas)]
ModelValues = Annotated[str, AfterValidator(_check_model_values)]


def replica_range(name: str, text: str, min_replicas: int = 0) -> tuple[int, int]:
    """The minimum and maximum of `text`, a number of replicas such as `3` or a range such as `1-8`.

    Raises `BadSetting`, naming the setting `name`, for other texts and for a minimum below `min_replicas`.
    """
    first, dash, last = text.partition("-")
    if not (first.isdecimal() and (last.isdecimal() or not dash)):
        raise BadSetting(f"{name} must be a number of replicas or a range as in 1-8, got {text!r}")
    minimum, maximum = int(first), int(last or first)
    if not min_replicas <= minimum <= maximum or maximum == 0:
        raise BadSetting(
            f"{name} must be at least {min_replicas}, and a range must rise to at least 1; got {text!r}"
        )
    return minimum, maximum
