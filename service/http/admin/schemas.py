"""The JSON of `/v1/admin/keys`."""

from pydantic import BaseModel, ConfigDict, Field


class NewKey(BaseModel):
    """What is chosen for a key."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="1 to 64 characters; names the key in lists, logs and accounting.")
    weight: float = Field(1.0, gt=0, le=1000, description="Share among keys that wait; not used yet.")
    max_priority: int = Field(0, ge=0, le=9, description="Highest priority of its requests; not used yet.")
    requests_per_minute: int | None = Field(None, ge=0, le=100_000)
    images_per_day: int | None = Field(None, ge=0)
    device_seconds_per_day: float | None = Field(None, ge=0)
    spend_per_month: float | None = Field(None, ge=0, description="In the currency of price_per_device_hour.")
    models: list[str] = Field([], max_length=100, description="That it may use; empty: all.")
    expires: float | None = Field(None, description="Unix time at which it ends; null: never.")


class Rotation(BaseModel):
    """How a key gets a new secret."""

    model_config = ConfigDict(extra="forbid")

    overlap_seconds: float = Field(86_400.0, ge=0, description="For which those before it open it, too.")


class Key(BaseModel):
    """A key; of its secrets only the beginnings."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    id: str
    name: str
    prefixes: list[str] = Field(description="First characters of its secrets, replaced ones included.")
    weight: float
    max_priority: int
    requests_per_minute: int | None
    images_per_day: int | None
    device_seconds_per_day: float | None
    spend_per_month: float | None
    models: list[str]
    expires: float | None
    created: float
    last_used: float | None = Field(description="To an hour.")
    revoked: float | None


class KeyWithSecret(Key):
    """A key with its new secret, which no later answer repeats."""

    secret: str


class KeyList(BaseModel):
    data: list[Key]
