"""The JSON of `/sdapi/v1`, as far as it is read and answered."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from safelight.service.http.edits.schema import ANY_IMAGE, SHARE
from safelight.service.http.reading.model_names import ModelNames
from safelight.service.http.reading.schema import tolerant_schema

Schema = dict[str, Any]
# What the fields mean; each is read as tolerantly as by `/v1/images/generations`.
DESCRIPTIONS = {
    "prompt": "What the image shows.",
    "negative_prompt": "What it should not show.",
    "steps": "Denoising steps.",
    "cfg_scale": "Guidance.",
    "sampler_name": "One of /sdapi/v1/samplers; another name means the default.",
    "sampler_index": "As `sampler_name`, if that is not given.",
    "width": "The nearest size that is served is drawn.",
    "height": "As for `width`.",
    "seed": "-1 or absent: random. Image k has the seed plus k.",
}
# Any value is taken: one without a meaning for a field is ignored, as is any other field by AUTOMATIC1111.
OTHERS = {
    "scheduler": "One of /sdapi/v1/schedulers.",
    "batch_size": "Images; times `n_iter`.",
    "n_iter": "Images; times `batch_size`.",
    "send_images": "Whether the answer holds the images; `false`: it does not.",
    "override_settings": "Where several models are served, its `sd_model_checkpoint` is the name of one.",
}
NO_MASK = {"enum": [None, "", False, 0], "description": "Masks are read by /v1/images/edits only."}


def json_body(schema: Schema) -> Schema:
    """A route's part of the OpenAPI schema whose body has `schema`."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def generation_schema(names: ModelNames) -> Schema:
    """The schema of a request of `txt2img`."""
    fields = tolerant_schema(names)["properties"]
    properties = {name: fields[name] | {"description": text} for name, text in DESCRIPTIONS.items()}
    return {
        "type": "object",
        "additionalProperties": True,
        "required": ["prompt"],
        "properties": properties | {name: {"description": text} for name, text in OTHERS.items()},
    }


def edit_schema(names: ModelNames) -> Schema:
    """The schema of a request of `img2img`."""
    schema = generation_schema(names)
    fields = {
        "init_images": {
            "type": "array",
            "minItems": 1,
            "prefixItems": [{"anyOf": ANY_IMAGE}],
            "description": "The image to edit, in base64 or as a data: URL; further ones are ignored.",
        },
        "denoising_strength": {
            "anyOf": SHARE,
            "description": "How much is redrawn; default 0.75.",
        },
        "mask": NO_MASK,
        "mask_image": NO_MASK,
    }
    return schema | {"required": ["prompt", "init_images"], "properties": schema["properties"] | fields}


class DrawResponse(BaseModel):
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


class NamedItem(BaseModel):
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
