"""The service's settings, and the only module that reads the environment (prefix `SAFELIGHT_`)."""

import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from safelight.service.model_values import parse_model_values
from safelight.service.runtime.addresses import is_loopback
from safelight.service.runtime.ignored_variables import describe_ignored
from safelight.service.setting_sources import EnvironmentSource, FolderSource
from safelight.service.setting_types import (
    MODEL_VALUES,
    NO_STORE,
    Amount,
    BadSetting,
    Count,
    ModelValues,
    PositiveFloat,
    PositiveInt,
    Probability,
    StageReplicas,
    check_accounts_name,
    check_aliases,
    check_counter_store,
    check_database,
    check_denied_words,
    check_file,
    check_folder,
    check_gateway_replicas,
    check_hosts,
    check_image_store,
    check_import_path,
    check_link_key,
    check_max_rows,
    check_origins,
    check_port,
    check_public_url,
    check_root_path,
    check_served_names,
    check_variant,
    check_webhook_origins,
    check_webhook_secret,
    names_in,
    replica_range,
)

logger = logging.getLogger(__name__)

PREFIX = "SAFELIGHT_"
DEFAULT_MODELS = ("emoji-128", "emoji-128-turbo")  # the first serves requests that name none
SPLIT_ONLY = ("encode_replicas", "decode_replicas", "encode_gpus", "decode_gpus")


@cache
def _warn_of_ignored(description: str) -> None:
    """Once a process: settings are made more than once."""
    logger.warning("environment variables without effect: %s", description)


class Settings(BaseSettings):
    """Every setting of the service.

    A value comes from the first of these that has one:

    1. the keyword argument, such as `port=8000`;
    2. the environment variable, `SAFELIGHT_PORT`;
    3. the file `SAFELIGHT_PORT` in the folder `secrets_dir`;
    4. the default.

    Settings are frozen, hashable and picklable.

    Raises:
        BadSetting: A value is unknown or invalid.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", coerce_numbers_to_str=True
    )

    model: str = Field(
        ",".join(DEFAULT_MODELS),
        description="Name of an embedded model, path of a checkpoint folder, or id of a model in the Hugging "
        "Face cache of the machine, such as `org/name`; or several of them, separated by commas, of which "
        "the first serves requests that name none.",
    )
    served_name: Annotated[str, AfterValidator(check_served_names)] = Field(
        "",
        description="Name under which the model is served: in requests, `/v1/models`, images, accounting and "
        "metrics; of several models as for `default_steps`. Empty: an embedded model's name, the id in the "
        "Hugging Face cache, or the folder's name.",
    )
    aliases: Annotated[str, AfterValidator(check_aliases)] = Field(
        "",
        description="Further names by which requests may ask for the first model, separated by commas; a `*` "
        "stands for any text, so that `*` alone takes every name. OpenAI's names are taken anyway.",
    )
    variant: Annotated[str, AfterValidator(check_variant)] = Field(
        "",
        description="Variant of the weight files, such as `fp16` for `model.fp16.safetensors`; parts without "
        "it are read as if none was chosen. Empty: the file without a variant, else the variant of the "
        "dtype that the device computes in, else the only one.",
    )
    allow_unknown_config: bool = Field(
        False,
        description="Whether options in the configurations of the transformer and the autoencoder that are "
        "not known are logged and ignored; else the folder is refused.",
    )
    default_steps: ModelValues = Field(
        "",
        description="`num_inference_steps` of requests that do not say, such as `4`; or by the names of "
        "models, such as `sd3=28,turbo=4`. Empty: the family's.",
    )
    default_guidance: ModelValues = Field(
        "", description="`guidance_scale` of requests that do not say; as for `default_steps`."
    )
    default_solver: ModelValues = Field(
        "", description="`solver` of requests that do not say; as for `default_steps`."
    )
    default_size: ModelValues = Field(
        "",
        description="`size` of requests that do not say or ask for `auto`, as `WIDTHxHEIGHT`; as for "
        "`default_steps`. Empty: the native size.",
    )
    host: str = Field("127.0.0.1", description="Address on which HTTP is served.")
    port: Annotated[int, AfterValidator(check_port)] = Field(
        8000, description="TCP port on which HTTP is served, 0 to 65535; 0 takes any free port."
    )
    root_path: Annotated[str, AfterValidator(check_root_path)] = Field(
        "",
        description="Path below which a proxy in front serves the service, such as `/safelight`, whether it "
        "takes it away or not. Empty: the proxy's header `X-Forwarded-Prefix`, else none.",
    )
    cors_origins: Annotated[str, AfterValidator(check_origins)] = Field(
        "",
        description="Origins whose web pages may call the service from a browser, such as "
        "`https://chat.example.com`, separated by commas; `*` for all. Empty: none but its own.",
    )
    strict: bool = Field(
        False,
        description="Whether a request is refused if a field is unknown or is not written as docs/api.md "
        "says; else it is read as far as it can be understood, and the answer lists what was adjusted. "
        "`/sdapi/v1` is always read so.",
    )
    stages: Literal["split", "colocated"] = Field(
        "split",
        description="`split` runs each stage in a deployment of its own, `colocated` all three stages in "
        "one replica.",
    )
    encode_threads: Count = Field(
        0,
        description="CPU threads of a text encoder. 0: one thread if a text is little work, else every "
        "core that the process may use.",
    )
    denoise_threads: Count = Field(
        0, description="CPU threads of a denoiser. 0: every core that the process may use."
    )
    decode_threads: Count = Field(
        0,
        description="CPU threads of an image decoder. 0: one thread if an image is little work, else every "
        "core that the process may use.",
    )
    gateway_replicas: Annotated[str, AfterValidator(check_gateway_replicas)] = Field(
        "1",
        description="Gateway replicas: a number from 1, or a range such as `1-8`, scaled by requests in "
        "flight.",
    )
    encode_replicas: StageReplicas = Field(
        "1",
        description="Text encoder replicas: a number from 1, or a range such as `1-8`, scaled by queued "
        "work. In a range from 0, such as `0-4`, the stage has no replica while it has no work.",
    )
    denoise_replicas: StageReplicas = Field(
        "1",
        description="Denoiser replicas, a number or a range as for `encode_replicas`; in the `colocated` "
        "layout, replicas of all three stages together.",
    )
    decode_replicas: StageReplicas = Field(
        "1", description="Image decoder replicas, a number or a range as for `encode_replicas`."
    )
    encode_gpus: Amount = Field(
        0.0,
        description="GPUs of one text encoder replica; a fraction shares a GPU. 0 reserves none: on a Ray "
        "cluster, the replica then runs on the CPU.",
    )
    denoise_gpus: Amount = Field(
        0.0,
        description="GPUs of one denoiser replica, as for `encode_gpus`; in the `colocated` layout, GPUs of "
        "a replica of all three stages.",
    )
    decode_gpus: Amount = Field(0.0, description="GPUs of one image decoder replica, as for `encode_gpus`.")
    target_seconds: PositiveFloat = Field(
        5.0,
        description="Queued work per replica, in device-seconds, above which a stage whose number of "
        "replicas is a range gets more of them.",
    )
    upscale_delay_seconds: Amount = Field(
        3.0, description="Seconds for which more replicas must be needed before they are added. 0: at once."
    )
    downscale_delay_seconds: Amount = Field(
        60.0, description="Seconds for which fewer replicas must suffice before some are removed. 0: at once."
    )
    quantization: Literal["none", "int8"] = Field(
        "none",
        description="Quantization of the denoiser's large layers; `int8` is faster from a width of about "
        "1,000 (docs/performance.md).",
    )
    compile_blocks: bool = Field(
        False,
        description="Whether torch compiles the denoiser's blocks, once at the start; for GPUs. An image may "
        "then differ by rounding from the same image in another batch. Not with `quantization`.",
    )
    max_rows: Annotated[int, AfterValidator(check_max_rows)] = Field(
        16,
        description="Most rows of the network's batch in one tick, at least 2: a guided image takes two.",
    )
    max_tokens: Count = Field(
        0,
        description="Most image tokens in one tick, which limits the denoiser's memory. 0: those of "
        "`max_rows` rows at the model's native size.",
    )
    text_cache_bytes: Count = Field(
        256 << 20,
        description="Memory of the cache of encoded texts, in bytes; the default holds about 11,000 texts "
        "of emoji-128 or 49 of Stable Diffusion 3. 0 turns the cache off.",
    )
    mark_images: bool = Field(
        True,
        description="Whether files say in their XMP metadata that a trained model made the image: IPTC's "
        "`DigitalSourceType` `trainedAlgorithmicMedia`, for edits `compositeWithTrainedAlgorithmicMedia`.",
    )
    denied_words_file: Annotated[str, AfterValidator(check_denied_words)] = Field(
        "",
        description="File with words and phrases, one a line, that prompts may not hold (docs/security.md). "
        "Empty: prompts are not filtered.",
    )
    image_classifier: Annotated[str, AfterValidator(check_import_path)] = Field(
        "",
        description="Import path of a callable that returns a classifier of images, such as "
        "`filters.nudity:make`, which the decoding stage asks about every image (docs/security.md). Empty: "
        "images are not classified.",
    )
    max_body_bytes: PositiveInt = Field(1 << 20, description="Largest request body, in bytes.")
    max_upload_bytes: PositiveInt = Field(
        20 << 20, description="Largest body of a request that uploads images to be edited, in bytes."
    )
    max_pictures: PositiveInt = Field(
        256,
        description="Most images of one model in flight in one gateway; a request that would exceed it is "
        "refused with status 429.",
    )
    deadline_seconds: PositiveFloat = Field(
        300.0,
        description="Seconds after a request has been parsed in which its images must be finished; else it "
        "is answered with status 503.",
    )
    promise_seconds: Amount = Field(
        30.0,
        description="Seconds in which the images of a request must be done that does not say `deadline_ms`; "
        "one that the service cannot promise is refused with status 429 (docs/promises.md). A request that "
        "needs longer by itself is promised twice what it needs. 0: nothing is promised.",
    )
    promise_probability: Probability = Field(
        0.95, description="Probability with which promises should be kept, more than 0 and less than 1."
    )
    hang_seconds: PositiveFloat = Field(
        60.0,
        description="Seconds that a tick of the denoiser may take, or 20 times its forecast if that is "
        "longer; a replica in which one takes longer hangs, and is replaced (docs/faults.md).",
    )
    body_seconds: PositiveFloat = Field(
        20.0,
        description="Seconds in which a request's body must arrive; else it is answered with status 408.",
    )
    header_seconds: PositiveFloat = Field(
        20.0,
        description="Seconds in which the headers of a request must arrive, and the first of a connection "
        "after it was opened; else it is answered with status 408 and closed (docs/security.md).",
    )
    max_header_bytes: PositiveInt = Field(
        64 << 10, description="Largest headers of a request, its line included, in bytes."
    )
    max_connections: PositiveInt = Field(
        1000, description="Most open connections of one gateway; further ones are answered with status 503."
    )
    send_seconds: PositiveFloat = Field(
        60.0,
        description="Seconds in which a client must take a part of the answer that it is sent; else the "
        "connection is closed.",
    )
    shutdown_seconds: PositiveFloat = Field(
        10.0,
        description="Seconds that a replica which is stopped has to finish its images in flight; in a stage "
        "whose number of replicas is a range it has `deadline_seconds`.",
    )
    require_api_keys: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether callers need an API key (docs/keys.md). `auto`: unless `host` is a loopback "
        "address and `api_keys_file` is empty. `never` serves everyone who reaches the port.",
    )
    api_keys_file: Annotated[str, AfterValidator(check_file)] = Field(
        "",
        description="File with hashed API keys, beside those in `database`; it is read again when it "
        "changes. Empty: none.",
    )
    database: Annotated[SecretStr, AfterValidator(check_database)] = Field(
        SecretStr(""),
        description="Absolute path of the folder of a SQLite file, or the URL of PostgreSQL such as "
        "`postgresql://user:password@host/name`, which needs the extra `postgres`; several machines need "
        "PostgreSQL. Empty: `safelight` in the user's folder for data. It has API keys, the accounts, jobs "
        "and requests with an `Idempotency-Key`.",
    )
    keep_accounts: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether the accounts of `/v1/accounting` are kept in `database`, so that they survive a "
        "restart (docs/accounts.md). `auto`: if `database` is set or API keys are there, or if `host` is a "
        "loopback address and `port` is not 0.",
    )
    accounts_name: Annotated[str, AfterValidator(check_accounts_name)] = Field(
        "",
        description="Name of this service in the database: services that share one have accounts of their "
        "own. At most 64 characters. Empty: the port.",
    )
    usage_record_days: PositiveFloat = Field(
        7.0, description="Days for which records of single requests are kept in the database."
    )
    usage_minute_days: PositiveFloat = Field(
        62.0,
        description="Days for which sums by minute, API key and model are kept in the database; sums since "
        "the beginning are kept for ever.",
    )
    key_refresh_seconds: PositiveFloat = Field(
        5.0,
        description="Seconds in which a change of a key in the database, such as its revocation, "
        "reaches every gateway.",
    )
    key_outage_seconds: Amount = Field(
        3600.0,
        description="Seconds for which a gateway goes on with the keys that it knows while the database "
        "cannot be read.",
    )
    counter_store: Annotated[SecretStr, AfterValidator(check_counter_store)] = Field(
        SecretStr(""),
        description="Where the limits of API keys are counted: the URL of Valkey or Redis such as "
        "`valkey://host:6379/0`, which needs the extra `valkey` and which several gateways share. Empty: "
        "each gateway's memory, and the database.",
    )
    admin_key: SecretStr = Field(
        SecretStr(""),
        description="Bearer key that `/v1/accounting`, `/v1/admin/keys` and the routes that add and remove "
        "models require. Empty: there is no `/v1/admin/keys`, nobody may change the models, and anyone may "
        "read `/v1/accounting` unless API keys are required: then nobody.",
    )
    metrics_key: SecretStr = Field(
        SecretStr(""),
        description="Bearer key that `/metrics` requires. Empty: anyone may read it unless API keys are "
        "required: then the bearer of `admin_key`.",
    )
    trusted_hosts: Annotated[str, AfterValidator(check_hosts)] = Field(
        "",
        description="Names of hosts, separated by commas, that requests may name in `Host` beside addresses, "
        "names without a dot, private domains, `host` and the host of `public_url`. A service without API "
        "keys on a loopback address refuses others, because a web page may have sent them (DNS rebinding).",
    )
    image_store: Annotated[str, AfterValidator(check_image_store)] = Field(
        "",
        description="Where images are stored that are answered as links: the absolute path of a folder, or "
        "the URL of a bucket such as `s3://bucket/prefix`, `gs://...` or `az://...`, whose credentials are "
        "read from the environment (docs/links.md). Empty: `safelight/images` in the user's folder for data. "
        "`none`: there are no links.",
    )
    image_store_bytes: Count = Field(
        1 << 30,
        description="Most bytes of stored images; beyond it the oldest are deleted, although their links "
        "have not expired. 0: no limit.",
    )
    link_seconds: PositiveFloat = Field(
        86_400.0, description="Seconds for which a link to an image holds, and the image is stored."
    )
    link_key: Annotated[SecretStr, AfterValidator(check_link_key)] = Field(
        SecretStr(""),
        description="Key that signs links, at least 32 characters. Empty: one is made and kept in the image "
        "store.",
    )
    public_url: Annotated[str, AfterValidator(check_public_url)] = Field(
        "",
        description="URL at which callers reach the service, such as `https://images.example.org`, with "
        "which links begin. Empty: as the request says, in `Host` and `X-Forwarded-*`.",
    )
    jobs: bool = Field(
        True,
        description="Whether requests may be sent as jobs, and with an `Idempotency-Key` (docs/jobs.md); "
        "both need `image_store`.",
    )
    job_concurrency: PositiveInt = Field(
        2, description="Most jobs that a gateway draws at a time, beside the requests whose callers wait."
    )
    max_jobs: PositiveInt = Field(
        10_000, description="Most open jobs; a further one is refused with status 429."
    )
    max_jobs_per_key: PositiveInt = Field(
        1_000, description="Most open jobs of one API key, or without keys of all callers."
    )
    max_job_upload_bytes: PositiveInt = Field(
        1 << 30, description="Most bytes of the files that open jobs edit, which the database keeps."
    )
    job_seconds: PositiveFloat = Field(
        172_800.0,
        description="Seconds after its submission in which a job must be begun, and for which its images are "
        "kept; then it has expired, and is still listed for as long.",
    )
    batch_images: Count = Field(
        0,
        description="Images of batches (docs/batches.md) that a gateway draws at a time, at the lowest "
        "priority. 0: two full ticks of every denoiser, divided among the gateways.",
    )
    max_batch_lines: PositiveInt = Field(10_000, description="Most lines of a batch.")
    max_batches_per_key: PositiveInt = Field(
        20, description="Most batches of one API key that have not ended, or without keys of all callers."
    )
    max_file_bytes: PositiveInt = Field(
        100 << 20, description="Largest file that may be uploaded for a batch, in bytes."
    )
    max_files_bytes: PositiveInt = Field(
        1 << 30,
        description="Most bytes of uploaded files of one API key, or without keys of all callers, which the "
        "database keeps.",
    )
    file_seconds: PositiveFloat = Field(
        604_800.0,
        description="Seconds for which uploaded files, and the output of batches with its images, are kept.",
    )
    webhook_origins: Annotated[str, AfterValidator(check_webhook_origins)] = Field(
        "",
        description="Origins that webhooks of jobs may be sent to, such as `https://hooks.example.org`, "
        "separated by commas. An address of a private network is allowed only if it is itself in the list. "
        "Empty: there are no webhooks.",
    )
    webhook_url: str = Field(
        "",
        description="Receiver of the webhooks of jobs that name none, in one of `webhook_origins`. Empty: "
        "none.",
    )
    webhook_secret: Annotated[SecretStr, AfterValidator(check_webhook_secret)] = Field(
        SecretStr(""),
        description="Signs webhooks, as Standard Webhooks writes it: `whsec_` and the base64 of 24 to 64 "
        "random bytes. Required with `webhook_origins`.",
    )
    secrets_dir: Annotated[str, AfterValidator(check_folder)] = Field(
        "",
        description="Folder with one file per setting, named like its environment variable, such as "
        "`SAFELIGHT_ADMIN_KEY`; Kubernetes mounts a Secret as such a folder. The environment takes "
        "precedence. Empty: none.",
    )
    target_latency_seconds: PositiveFloat = Field(
        5.0, description="Target for a request's latency at the 95th percentile, in seconds."
    )
    target_images_per_hour: PositiveFloat = Field(
        1000.0, description="Target for the images that a busy device generates in an hour."
    )
    price_per_device_hour: Amount = Field(
        0.0,
        description="Price of one device for one hour, in any currency, from which `/v1/accounting` computes "
        "costs. 0: no costs.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="The least level of the log lines that are written. Every request for images is a line "
        "of `info`, a refusal of `warning`, a fault of `error`; other requests are lines of `debug`.",
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Form of a log line: `text` for people, or `json`, one object a line."
    )
    log_prompts: bool = Field(False, description="Whether log lines hold the prompts.")
    log_socket: str = Field(
        "",
        description="Unix datagram socket to which all processes send their log lines. `safelight serve` "
        "makes one and writes the lines to standard error. Empty: each process writes to its own.",
    )
    calibration_folder: str = Field(
        "",
        description="Folder with what denoisers of this machine have measured at their start, for those that "
        "replace them. `safelight serve` makes one for as long as it runs. Empty: every denoiser measures.",
    )
    spare_workers: Count = Field(
        1,
        description="Processes that `safelight serve` keeps ready, with all libraries imported, to replace a "
        "part that is lost (docs/faults.md). Each takes some 400 MB.",
    )
    restarts: Count = Field(
        3,
        description="How often within ten minutes `safelight serve` starts all of its processes again after "
        "one was lost that nothing else replaces; 0: it ends with status 1 instead.",
    )
    trace_endpoint: str = Field(
        "",
        description="URL to which OpenTelemetry spans are sent by OTLP over HTTP, such as "
        "`http://localhost:4318/v1/traces`; needs the extra `otel`. Empty: no tracing.",
    )
    peak_tflops: Amount = Field(
        0.0,
        description="Peak speed of a device in TFLOP/s, from which its utilisation is computed. 0: measured "
        "at start.",
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *defaults: PydanticBaseSettingsSource, **sources: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        folder = sources["file_secret_settings"].secrets_dir
        return (
            sources["init_settings"],
            EnvironmentSource(settings_cls),
            FolderSource(settings_cls, secrets_dir=folder),
        )

    def __init__(self, **values: Any):
        if description := describe_ignored(os.environ, PREFIX):
            _warn_of_ignored(description)
        folder = values.get("secrets_dir") or os.environ.get(f"{PREFIX}SECRETS_DIR") or None
        try:
            super().__init__(_secrets_dir=folder if folder and Path(folder).is_dir() else None, **values)
        except ValidationError as error:
            raise BadSetting(_sentence(error)) from None

    @property
    def models(self) -> tuple[str, ...]:
        """The models of `model`, the default first. A folder whose path holds commas is one model."""
        if Path(self.model).expanduser().is_dir():
            return (self.model,)
        return names_in(self.model) or (self.model,)

    @property
    def has_jobs(self) -> bool:
        """Whether there are jobs, whose images are stored."""
        return self.jobs and self.image_store != NO_STORE

    @property
    def line_images(self) -> int:
        """Images of batches that a gateway draws at a time."""
        denoisers, gateways = (
            max(1, replica_range(name, getattr(self, name))[0])
            for name in ("denoise_replicas", "gateway_replicas")
        )
        return self.batch_images or max(2, self.max_rows * denoisers // gateways)

    def model_defaults(self) -> dict[str, dict[str, Any]]:
        """The defaults of requests by setting and name of a model; an empty name stands for every model."""
        return {name: parse_model_values(getattr(self, name), parse) for name, parse in MODEL_VALUES.items()}

    @property
    def requires_keys(self) -> bool:
        """Whether callers need an API key."""
        if self.require_api_keys == "auto":
            return bool(self.api_keys_file) or not is_loopback(self.host)
        return self.require_api_keys == "always"

    @property
    def uses_database(self) -> bool:
        """Whether API keys are in the database, and not in a file alone."""
        return self.requires_keys and (bool(self.database.get_secret_value()) or not self.api_keys_file)

    @property
    def keeps_accounts(self) -> bool:
        """Whether the accounts are kept in the database.

        By default not where nobody would look for them: in the home folder of a container or of whatever node
        of a cluster has the ledger. Nor for a service on any free port, which is another one every time.
        """
        if self.keep_accounts == "auto":
            is_for_this_machine = is_loopback(self.host) and self.port != 0
            return bool(self.database.get_secret_value()) or self.uses_database or is_for_this_machine
        return self.keep_accounts == "always"

    @property
    def service_name(self) -> str:
        """Name of this service in the database."""
        return self.accounts_name or str(self.port)

    @model_validator(mode="after")
    def _check_layout(self) -> Self:
        for name in SPLIT_ONLY if self.stages == "colocated" else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                denoise = name.replace("encode", "denoise").replace("decode", "denoise")
                raise ValueError(
                    f"{name} has no effect with stages=colocated, where one replica holds all stages; "
                    f"set {denoise} instead"
                )
        if self.webhook_origins and not self.webhook_secret.get_secret_value():
            raise ValueError("webhook_origins needs webhook_secret, which signs the messages")
        webhook_origin = "/".join(self.webhook_url.split("/")[:3])
        if webhook_origin and webhook_origin not in names_in(self.webhook_origins):
            raise ValueError("webhook_url must be in one of webhook_origins")
        if self.compile_blocks and self.quantization != "none":
            raise ValueError(f"compile_blocks needs quantization=none, got {self.quantization}")
        return self

    def updated(self, **changes: Any) -> Self:
        """A copy with `changes`, validated like any other settings."""
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)


def read_settings(values: Mapping[str, object]) -> Settings:
    """Settings from `values`, where None or an empty text leaves the setting to environment and defaults.

    Raises `BadSetting`.
    """
    return Settings(**{name: value for name, value in values.items() if value not in (None, "")})


def may_sleep(settings: Settings) -> frozenset[str]:
    """The stages that may have no replica while they have no work."""
    ranges = {
        "encode": settings.encode_replicas,
        "denoise": settings.denoise_replicas,
        "decode": settings.decode_replicas,
    }
    if settings.stages == "colocated":
        ranges = dict.fromkeys(ranges, settings.denoise_replicas)
    return frozenset(stage for stage, replicas in ranges.items() if replica_range(stage, replicas)[0] == 0)


def _sentence(error: ValidationError) -> str:
    """The first fault in `error`, as one sentence that names the setting."""
    fault = error.errors(include_url=False)[0]
    if fault["type"] == "value_error":  # of a validator above, which writes the whole sentence
        return str(fault["ctx"]["error"])
    name, value = str(fault["loc"][0]), fault["input"]
    if fault["type"] == "extra_forbidden":
        return f"{name} is not a setting; allowed: {', '.join(Settings.model_fields)}"
    kind: Any = Settings.model_fields[name].annotation
    if kind is SecretStr:  # its value is not repeated
        return f"{name} must be text"
    if fault["type"] == "literal_error":
        return f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}"
    nouns = {int: "a whole number", float: "a number", bool: "true or false"}
    noun = nouns.get(kind, "text") if isinstance(kind, type) else "text"
    return f"{name} must be {noun}, got {value!r}"
