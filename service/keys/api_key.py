"""A key as the service knows it: all but its secret."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._@+-]{0,62}[A-Za-z0-9])?", re.ASCII)
MAX_WEIGHT = 1000.0
PRIORITIES = (0, 9)
MAX_REQUESTS_PER_MINUTE = 100_000
MAX_MODELS = 100


class BadKey(ValueError):
    """A key that cannot be made or read; the message names the field and holds no secret."""

    def __init__(self, message: str, param: str = ""):
        super().__init__(message)
        self.param = param


class KeyNotFound(LookupError):
    """There is no such key; the message says so."""


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """How much a key may use; None for no limit."""

    requests_per_minute: int | None = None
    images_per_day: int | None = None
    device_seconds_per_day: float | None = None
    spend_per_month: float | None = None  # in the currency of `price_per_device_hour`


@dataclass(frozen=True, slots=True)
class KeySpec:
    """What whoever makes a key chooses.

    Attributes:
        name: Names it in lists, logs and accounting.
        weight: Its share among keys that wait. Kept for the scheduler, which does not use it yet.
        max_priority: The highest priority that its requests may ask for. Kept likewise.
        limits: How much it may use.
        models: That it may use; empty for all.
        expires: Unix time at which it ends; None for never.
    """

    name: str
    weight: float = 1.0
    max_priority: int = 0
    limits: KeyLimits = KeyLimits()
    models: tuple[str, ...] = ()
    expires: float | None = None

    def __post_init__(self) -> None:
        """Raise `BadKey` for the first invalid field."""
        if not NAME.fullmatch(self.name):
            raise BadKey(
                "name must be 1 to 64 letters, digits, spaces and any of ._@+-, with a letter or digit at "
                "both ends",
                "name",
            )
        if not 0 < self.weight <= MAX_WEIGHT:
            raise BadKey(f"weight must be more than 0 and at most {MAX_WEIGHT:g}", "weight")
        low, high = PRIORITIES
        if not low <= self.max_priority <= high:
            raise BadKey(f"max_priority must be between {low} and {high}", "max_priority")
        for limit in fields(self.limits):
            value = getattr(self.limits, limit.name)
            if value is not None and not 0 <= value < math.inf:
                raise BadKey(f"{limit.name} must be at least 0 and finite", limit.name)
        if (self.limits.requests_per_minute or 0) > MAX_REQUESTS_PER_MINUTE:
            raise BadKey(
                f"requests_per_minute must be at most {MAX_REQUESTS_PER_MINUTE:,}", "requests_per_minute"
            )
        if len(self.models) > MAX_MODELS or not all(map(_is_model, self.models)):
            raise BadKey(f"models must be at most {MAX_MODELS} names of 1 to 128 characters", "models")
        if self.expires is not None and not 0 < self.expires < 1e11:
            raise BadKey("expires must be a Unix time in seconds", "expires")


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """What is kept of a secret."""

    prefix: str
    digest: bytes = field(repr=False)
    ends: float | None = None  # Unix time, of one that was replaced


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key.

    Attributes:
        id: Names it in accounting and logs, also after its name is used again.
        spec: What it may do.
        secrets: Those that open it, or did.
        created: Unix time.
        revoked: Unix time; None if it holds.
        last_used: Unix time, to an hour; None if it was not used.
    """

    id: str
    spec: KeySpec
    secrets: tuple[StoredSecret, ...] = field(repr=False)
    created: float = 0.0
    revoked: float | None = None
    last_used: float | None = None

    def may_use(self, model: str) -> bool:
        return not self.spec.models or model in self.spec.models

    def why_not(self, secret: StoredSecret | None, now: float) -> str | None:
        """Why the key does not hold at `now`, with this secret of it if one was sent; None if it does."""
        if self.revoked is not None:
            return "was revoked"
        if secret is not None and secret.ends is not None and now >= secret.ends:
            return "was replaced by another"
        if self.spec.expires is not None and now >= self.spec.expires:
            return "has expired"
        return None

    def describe(self) -> dict[str, Any]:
        """The key as JSON; of its secrets only the prefixes."""
        spec, limits = self.spec, self.spec.limits
        return {
            "id": self.id,
            "name": spec.name,
            "prefixes": [secret.prefix for secret in self.secrets],
            "weight": spec.weight,
            "max_priority": spec.max_priority,
            **{limit.name: getattr(limits, limit.name) for limit in fields(limits)},
            "models": list(spec.models),
            "expires": spec.expires,
            "created": self.created,
            "last_used": self.last_used,
            "revoked": self.revoked,
        }


def read_spec(values: Mapping[str, Any]) -> KeySpec:
    """The choices in `values`, named as in `ApiKey.describe`; a null is left out. Raises `BadKey`."""
    limit_names = [limit.name for limit in fields(KeyLimits)]
    kinds = {"weight": float, "max_priority": int, "expires": float} | {
        name: int if name in ("requests_per_minute", "images_per_day") else float for name in limit_names
    }
    if unknown := sorted(values.keys() - kinds.keys() - {"name", "models"}):
        raise BadKey(f"{unknown[0][:64]} is not a field of a key", unknown[0][:64])
    name = values.get("name")
    if not isinstance(name, str):
        raise BadKey("name must be text", "name")
    numbers = {
        field_name: _number(field_name, values[field_name], kind)
        for field_name, kind in kinds.items()
        if values.get(field_name) is not None
    }
    limits = KeyLimits(**{limit: numbers.pop(limit) for limit in limit_names if limit in numbers})
    models = values.get("models") or ()
    if isinstance(models, str) or not all(isinstance(model, str) for model in models):
        raise BadKey("models must be a list of names", "models")
    return KeySpec(name, limits=limits, models=tuple(models), **numbers)


def _number(name: str, value: object, kind: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadKey(f"{name} must be a number", name)
    if kind is int and value != int(value):
        raise BadKey(f"{name} must be a whole number", name)
    return kind(value)


def _is_model(name: str) -> bool:
    return 0 < len(name) <= 128 and name.isprintable()
