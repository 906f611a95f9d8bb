"""The JSON of `/v1/accounting`."""

from pydantic import BaseModel, ConfigDict, Field

from safelight.pipeline.params import UsageAmounts

# a response always has all fields of `UsageAmounts`, although they have defaults
ALL_REQUIRED = ConfigDict(json_schema_serialization_defaults_required=True)


class Percentiles(BaseModel):
    p50: float | None
    p95: float | None
    p99: float | None


class AccountTotals(BaseModel):
    """The totals of one key and model."""

    model_config = ALL_REQUIRED

    key: str = Field(description="Id of the API key; `anonymous` without one.")
    key_name: str
    model: str
    requests: dict[str, int]
    images: int
    device_seconds: float = Field(description="Of all stages.")
    spend: float = Field(description="Price of these; 0 without `price_per_device_hour`.")
    stages: dict[str, UsageAmounts]
    store_seconds: float = Field(description="Waiting for the image store.")
    stored_bytes: int


class ModelReport(BaseModel):
    """The figures of one model in the window; the fields are those of the whole report."""

    model_config = ALL_REQUIRED

    model: str
    requests: dict[str, int]
    images: int
    images_per_hour: float
    devices: int
    images_per_hour_per_device: float | None
    images_per_busy_hour: float | None = Field(
        description="Images per busy hour of its denoiser and of its share of the stages that models share."
    )
    latency_seconds: Percentiles
    queue_seconds: Percentiles
    stages: dict[str, UsageAmounts]
    device_seconds_per_image: float | None
    mfu: float | None
    cost_per_1000_images: float | None


class RequestReport(BaseModel):
    """One request. The usage of its stages arrives some seconds after its end."""

    model_config = ALL_REQUIRED

    request_id: str
    key: str
    key_name: str
    model: str
    outcome: str
    code: str
    images: int
    seconds: float = Field(description="From the request's arrival to its response.")
    ended: float = Field(description="Unix time.")
    user: str = Field(
        description="The first 16 hexadecimal digits of the SHA-256 of the request's `safety_identifier` or "
        "`user`; empty without one."
    )
    stages: dict[str, UsageAmounts]
    store_seconds: float
    stored_bytes: int


class StageBalance(BaseModel):
    """Seconds of a stage's replicas, dead ones included, since the accounts began; `busy` is the sum."""

    busy: float
    requests: float = Field(description="Attributed to requests that have ended.")
    in_progress: float = Field(description="Spent on requests that have not ended.")
    warm_up: float
    starting: float = Field(description="Loading and measuring the network.")
    lost: float = Field(description="Spent on images that were dropped with their replica.")
    overhead: float = Field(description="The rest: the time between two pieces of attributed work.")


class Balance(BaseModel):
    stages: dict[str, StageBalance]
    unattributed_share: float | None = Field(
        description="The share of all busy seconds that belongs to no request."
    )


class ReplicaReport(BaseModel):
    stage: str
    model: str = Field(description="Of a denoiser; empty: the replica may serve several models.")
    process: int
    thread: int
    busy_seconds: float
    work_left_seconds: float
    pictures: int


class Target(BaseModel):
    name: str
    wanted: float
    got: float | None
    met: bool | None
    by: float | None = Field(description="got / wanted - 1.")


class StorageReport(BaseModel):
    """Where the accounts are kept, and whether all that they say is."""

    model_config = ALL_REQUIRED

    database: str = Field(description="Empty: they are in memory, and end with the service.")
    unsaved_seconds: float = Field(
        description="For how long nothing could be written; 0: all that this report says is kept."
    )
    error: str = Field(description="Why nothing can be written.")


IN_MEMORY = StorageReport(database="", unsaved_seconds=0.0, error="")


class AccountingReport(BaseModel):
    since: float = Field(description="Unix time at which the accounts began.")
    now: float = Field(description="Unix time of this report.")
    window_seconds: float = Field(
        description="Length of the window: as requested, extended to the start of a minute."
    )
    requests: dict[str, int]
    refusals: dict[str, int] = Field(description="By error code; includes failures and aborts.")
    images: int
    images_per_hour: float
    devices: int = Field(description="Living replicas of the denoiser.")
    images_per_hour_per_device: float | None = Field(
        description="Images in the window for each hour that a replica of the denoiser was alive in it."
    )
    images_per_busy_hour: float | None = Field(
        description="Images per busy hour of all stages together, start and warm-up excluded."
    )
    latency_seconds: Percentiles
    queue_seconds: Percentiles
    nfe: int
    rows: int
    tokens: int
    flops: int
    device_seconds: dict[str, float]
    device_seconds_per_image: float | None
    store_seconds: float = Field(
        description="Waiting for the image store, of requests that asked for links; no device's time."
    )
    stored_bytes: int
    mfu: float | None = Field(
        description="Model FLOPs utilisation of the busy denoiser: FLOP/s over `peak_flops`."
    )
    peak_flops: float | None = Field(description="Peak FLOP/s of the denoiser's device.")
    cost_per_1000_images: float | None = Field(
        description="Cost of the busy device time; null without a price."
    )
    currency_per_device_hour: float
    targets: list[Target]
    accounts: list[AccountTotals]
    models: list[ModelReport]
    balance: Balance
    replicas: list[ReplicaReport]
    latest: list[RequestReport]
    storage: StorageReport
    dropped_records: int = Field(
        description="Records of requests that were lost because a gateway had no room for more of them."
    )
