"""The JSON of `/sdapi/v1`, as far as it is read and answered."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

# What is read of a request. Values are read as tolerantly as those of `/v1/images/generations`; any other
# field is ignored, as by AUTOMATIC1111.
REQUEST_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": True,
    "required": ["prompt"],
    "properties": {
        "prompt": {"type": "string"},
        "negative_prompt": {"type": "string"},
        "steps": {"description": "Denoising steps."},
        "cfg_scale": {"description": "Guidance."},
        "sampler_name": {"description": "One of /sdapi/v1/samplers; also `sampler_index`."},
        "scheduler": {"description": "One of /sdapi/v1/schedulers."},
        "width": {"description": "The nearest size that is served is drawn."},
        "height": {"description": "As for `width`."},
        "seed": {"description": "-1 or absent: random. Image k has the seed plus k."},
        "batch_size": {"description": "Images; times `n_iter`."},
        "n_iter": {"description": "Images; times `batch_size`."},
        "send_images": {"type": "boolean", "description": "Whether the answer holds the images."},
    },
}

EDIT_SCHEMA: dict[str, Any] = REQUEST_SCHEMA | {
    "required": ["prompt", "init_images"],
    "properties": REQUEST_SCHEMA["properties"]
    | {
        "init_images": {
            "type": "array",
            "items": {"type": "string"},
            "description": "The image to edit, in base64 or as a data: URL.",
        },
        "denoising_strength": {"description": "0 to 1: how much is redrawn; default 0.75."},
    },
}


class Drawn(BaseModel):
    """The images, and what was drawn."""

    images: list[str] = Field(description="PNG files in base64.")
    parameters: dict[str, Any] = Field(description="The parameters that were used.")
    info: str = Field(
        description="JSON with `seed`, `all_seeds` and `infotexts`, and what the images cost in `safelight`."
    )


class SdModel(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    title: str
    model_name: str
    hash: str | None = None
    sha256: str | None = None
    filename: str
    config: str | None = None


class Sampler(BaseModel):
    name: str
    aliases: list[str]
    options: dict[str, Any]


class Scheduler(BaseModel):
    name: str
    label: str
    aliases: list[str]
    default_rho: float
    need_inner_model: bool


class Upscaler(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    name: str
    model_name: str | None = None
    model_path: str | None = None
    model_url: str | None = None
    scale: float | None = None


class Named(BaseModel):
    name: str


class ProgressState(BaseModel):
    """The state of the requests under way."""

    skipped: bool = False
    interrupted: bool = False
    job: str = ""
    job_count: int = 0
    job_timestamp: str = "0"
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0


class Progress(BaseModel):
    """How far the requests of this caller are, estimated from the time that earlier ones took."""

    progress: float
    eta_relative: float = Field(description="Seconds left.")
    state: ProgressState
    current_image: str | None = None
    textinfo: str | None = None
