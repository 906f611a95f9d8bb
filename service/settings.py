"""What an operator may decide, and the only place that reads the environment (prefix `SAFELIGHT_`)."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

PREFIX = "SAFELIGHT_"
DEFAULT_MODEL = "emoji-128"
STAGE_LAYOUTS = ("split", "colocated")
QUANTIZATIONS = ("none", "int8")
AT_LEAST_NOTHING = (
    "encode_gpus",
    "denoise_gpus",
    "decode_gpus",
    "upscale_delay_seconds",
    "downscale_delay_seconds",
)


class BadSetting(ValueError):
    """A setting that the service cannot run with; the message names it and says what is allowed."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Every choice of the service; a field `port` is read from `SAFELIGHT_PORT`."""

    model: str = DEFAULT_MODEL  # a model's name or a checkpoint folder
    host: str = "127.0.0.1"
    port: int = 8000
    stages: str = "split"  # one deployment a stage, or `colocated`: all three in one replica
    encode_threads: int = 0  # 0: every core this process may use, or one where a text is little work
    denoise_threads: int = 0  # 0: every core
    decode_threads: int = 0  # 0: every core, or one where an image is little work
    gateway_replicas: str = "1"  # how many, or a range within which they are scaled by load, as in 1-8
    encode_replicas: str = "1"  # in a range by the work that waits; a stage may go down to 0
    denoise_replicas: str = "1"
    decode_replicas: str = "1"
    encode_gpus: float = 0.0  # of a replica; a fraction shares one
    denoise_gpus: float = 0.0  # colocated: of all three stages
    decode_gpus: float = 0.0
    target_seconds: float = 5.0  # device-seconds of work that may wait for a replica before there are more
    upscale_delay_seconds: float = 3.0
    downscale_delay_seconds: float = 60.0
    quantization: str = "none"  # of the denoiser's large layers; `int8` pays from a width of about 1,000 on (docs/performance.md)
    max_rows: int = 16  # rows of the network in one tick
    max_tokens: int = (
        0  # image tokens in one tick, which bound its memory; 0: those of so many rows at the native size
    )
    text_cache_bytes: int = 256 << 20  # of states: some 4,000 texts of emoji-128, 48 of Stable Diffusion 3
    max_body_bytes: int = 1 << 20
    max_pictures: int = 256  # in flight in one gateway; more are refused with Retry-After
    deadline_seconds: float = 300.0  # for drawing, from the moment the request is understood
    body_seconds: float = 20.0  # for a request to arrive whole
    shutdown_seconds: float = 10.0  # for the images in flight when a replica is asked to stop
    admin_key: str = ""  # what `/v1/accounting` is asked with; empty: anybody may
    target_latency_seconds: float = 5.0  # of a request, at the 95th percentile
    target_images_per_hour: float = 1000.0  # of a device
    price_per_device_hour: float = 0.0  # in any currency
    trace_endpoint: str = ""  # where OpenTelemetry's spans go, OTLP over HTTP, as in http://localhost:4318/v1/traces; empty: nowhere
    peak_tflops: float = 0.0  # of a device, for its utilisation; 0: measured at start

    def __post_init__(self) -> None:
        if self.stages not in STAGE_LAYOUTS:
            raise BadSetting(f"stages must be one of {', '.join(STAGE_LAYOUTS)}, got {self.stages!r}")
        if self.quantization not in QUANTIZATIONS:
            raise BadSetting(
                f"quantization must be one of {', '.join(QUANTIZATIONS)}, got {self.quantization!r}"
            )
        if not 0 <= self.port <= 65535:
            raise BadSetting(f"port must be between 0 and 65535, got {self.port}")
        for name in (
            "max_body_bytes",
            "max_pictures",
            "deadline_seconds",
            "body_seconds",
            "shutdown_seconds",
            "target_latency_seconds",
            "target_images_per_hour",
            "target_seconds",
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise BadSetting(f"{name} must be more than 0 and finite, got {getattr(self, name)}")
        if self.max_rows < 2:
            raise BadSetting(
                f"max_rows must be at least 2, the rows of one guided image; got {self.max_rows}"
            )
        for name in ("encode_threads", "denoise_threads", "decode_threads", "text_cache_bytes", "max_tokens"):
            if not getattr(self, name) >= 0:
                raise BadSetting(f"{name} must be at least 0, got {getattr(self, name)}")
        least = {"gateway_replicas": 1, "encode_replicas": 0, "denoise_replicas": 0, "decode_replicas": 0}
        for name, fewest in least.items():
            replica_range(name, getattr(self, name), fewest)
        for name in (*AT_LEAST_NOTHING, "price_per_device_hour", "peak_tflops"):
            if not 0 <= getattr(self, name) < math.inf:
                raise BadSetting(f"{name} must be at least 0 and finite, got {getattr(self, name)}")


def may_sleep(settings: Settings) -> frozenset[str]:
    """The stages that may have no replica when there is nothing to do."""
    ranges = {
        "encode": settings.encode_replicas,
        "denoise": settings.denoise_replicas,
        "decode": settings.decode_replicas,
    }
    if settings.stages == "colocated":
        ranges = dict.fromkeys(ranges, settings.denoise_replicas)
    return frozenset(stage for stage, replicas in ranges.items() if replica_range(stage, replicas)[0] == 0)


def read_settings(given: Mapping[str, object], environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from what was `given` (None: not given), else from the environment, else the defaults."""
    unknown = sorted(set(given) - {field.name for field in fields(Settings)})
    if unknown:
        raise BadSetting(
            f"{unknown[0]} is not a setting; allowed: {', '.join(field.name for field in fields(Settings))}"
        )
    texts = {name: value for name, value in given.items() if value is not None}
    for field in fields(Settings):
        if field.name not in texts and (value := environ.get(PREFIX + field.name.upper())) is not None:
            texts[field.name] = value
    return Settings(**{name: _parse(name, value) for name, value in texts.items()})


def replica_range(name: str, text: str, fewest: int = 0) -> tuple[int, int]:
    """The least and the most replicas that `text` allows, `3` or `1-8`. Raises `BadSetting`."""
    least, dash, most = text.partition("-")
    if not (least.isdecimal() and (most.isdecimal() or not dash)):
        raise BadSetting(f"{name} must be a number of replicas or a range as in 1-8, got {text!r}")
    bounds = int(least), int(most or least)
    if not fewest <= bounds[0] <= bounds[1] or bounds[1] == 0:
        raise BadSetting(
            f"{name} must be at least {fewest}, and a range must rise to at least 1; got {text!r}"
        )
    return bounds


def num_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """The cores that this process may use: its share of the machine, or of the container's quota if that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text().split()
        return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup of version 2
        return cores


def _parse(name: str, value: object) -> Any:
    kind = get_type_hints(Settings)[name]
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise BadSetting(
            f"{name} must be {'a whole number' if kind is int else 'a number'}, got {value!r}"
        ) from None
