"""The JSON of requests and responses, in OpenAI's shape with Safelight's extensions."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from safelight.pipeline.catalog.model_info import (
    MAX_GUIDANCE_SCALE,
    MAX_GUIDANCE_STRIDE,
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
    MAX_STEPS,
    MIN_GUIDANCE_SCALE,
    MIN_STEPS,
)
from safelight.service.keys.api_key import PRIORITIES
from safelight.service.previews import MAX_PREVIEWS

MAX_IMAGES = 10
MAX_DEADLINE_MS = 86_400_000  # a day
Quality = Literal["low", "medium", "high", "xhigh", "max"]
QualitySynonym = Literal["auto", "standard", "hd"]

Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


def _ignored(reason: str) -> Any:
    return Field(None, description=f"Accepted for OpenAI's clients and ignored: {reason}.")


class ImageRequest(BaseModel):
    """What to draw. Any field that is not listed here is refused by name; null means the default."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: Annotated[Prompt, Field(min_length=1, pattern=r"\S", description="What the image shows.")]
    model: str | None = Field(
        None,
        description="The id of a served model, or one of the OpenAI names that clients hard-code.",
    )
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = Field(
        None, description="How many images; default 1."
    )
    size: Annotated[str, Field(pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$")] | None = Field(
        None,
        description="WIDTHxHEIGHT, one of the model's sizes; `auto` (the default) is the operator's default, "
        "else its native size.",
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None,
        description="`b64_json`: images come in the response. `url`: they are stored and links to them come. "
        "Default b64_json; for OpenAI's names dall-e-*, both.",
    )
    output_format: Literal["png", "webp", "jpeg"] | None = Field(None, description="Default png.")
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None, description="Quality of webp and jpeg, default 100; png is lossless and ignores it."
    )
    stream: bool | None = Field(
        None, description="Whether to answer with server-sent events, one for each image once it is done."
    )
    partial_images: Annotated[int, Field(ge=0, le=MAX_PREVIEWS)] | None = Field(
        None, description="With `stream`: how many previews of each image to send before it; default 0."
    )

    negative_prompt: Prompt | None = Field(
        None, description="Extension: what the image should not show; used under guidance only."
    )
    num_inference_steps: Annotated[int, Field(ge=MIN_STEPS, le=MAX_STEPS)] | None = Field(
        None, description="Extension: denoising steps; default: the model's."
    )
    guidance_scale: Annotated[float, Field(ge=MIN_GUIDANCE_SCALE, le=MAX_GUIDANCE_SCALE)] | None = Field(
        None, description="Extension: w in uncond + w * (cond - uncond); 0 to 1 is off; default: the model's."
    )
    solver: str | None = Field(None, description="Extension: the name of a solver; default: the model's.")
    timestep_spacing: str | None = Field(
        None, description="Extension: how the steps are spaced in time; default: the model's."
    )
    eta: Share | None = Field(
        None, description="Extension: DDIM's share of fresh noise, for the solver ddim only; default 0."
    )
    guidance_interval: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = Field(
        None,
        description="Extension: the times, from 0 (data) to 1 (noise), between which guidance is on. "
        "Default [0, 1].",
    )
    guidance_stride: Annotated[int, Field(ge=1, le=MAX_GUIDANCE_STRIDE)] | None = Field(
        None,
        description="Extension: evaluate both predictions at every Nth guided step only and reuse their "
        "last difference between, which is faster and changes the image. Default 1.",
    )
    guidance_rescale: Share | None = Field(
        None,
        description="Extension: phi, how far a guided prediction is rescaled to the standard deviation of "
        "the conditional one; default 0.",
    )
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(
        None,
        description="Extension: seed of the noise; random when absent, and reported. The noise of image k "
        "depends on the seed and k alone: to get image k again, send the same request with its seed and an "
        "n of at least k + 1.",
    )

    deadline_ms: Annotated[int, Field(ge=1, le=MAX_DEADLINE_MS)] | None = Field(
        None,
        description="Extension: milliseconds from the request's arrival in which its images must be there; "
        "a request that cannot be promised that is refused at once, with status 429. Default: the service's.",
    )
    priority: Annotated[int, Field(ge=PRIORITIES[0], le=PRIORITIES[1])] | None = Field(
        None,
        description="Extension: images of a higher priority go before others of the same API key, which may "
        "bound it; default 0.",
    )

    quality: Literal[Quality, QualitySynonym] | None = Field(
        None,
        description="How many steps, unless num_inference_steps says it: medium, standard and auto (the "
        "default) are the model's, low half, high and hd twice, xhigh three and max four times as many.",
    )
    background: Literal["auto", "opaque"] | None = Field(None, description="Images are opaque.")
    user: str | None = Field(
        None, description="Whose request it is, for the accounting, which keeps a hash; OpenAI's old name."
    )
    safety_identifier: str | None = Field(
        None, description="Whose request it is, for the accounting, which keeps a hash of it."
    )

    style: Literal["vivid", "natural"] | None = _ignored("write the style into the prompt")
    moderation: str | None = _ignored("what `/v1/models` says of it holds for every request")
    complexity: str | None = _ignored("vector images are not drawn")
    svg: dict[str, Any] | None = _ignored("vector images are not drawn")
    frame_count: int | None = _ignored("moving images are not drawn")
    frame_duration_ms: int | None = _ignored("moving images are not drawn")


class Adjustment(BaseModel):
    """A field that was read in another way than it was written."""

    field: str = Field(description="The field, by the name that the client sent.")
    asked: Any = Field(description="The client's value; the start of it as text if it is long.")
    used: Any = Field(description="The value that was used; null if the field has no effect.")
    note: str = Field(description="How it was read.")


class Image(BaseModel):
    """One image of a response; what was not asked for is absent."""

    b64_json: str | None = Field(None, description="The image's bytes in base64.")
    url: str | None = Field(None, description="A link to the image, which holds for a limited time.")


class InputTokens(BaseModel):
    """OpenAI's breakdown of the input tokens."""

    text_tokens: int
    image_tokens: int = 0


class OutputTokens(BaseModel):
    """OpenAI's breakdown of the output tokens."""

    image_tokens: int
    text_tokens: int = 0


class StageSeconds(BaseModel):
    """Seconds, stage by stage."""

    encode: float
    denoise: float
    decode: float


class Edit(BaseModel):
    """How the images were made from the one that was uploaded."""

    strength: float
    inpainting: bool = Field(description="Whether only what the mask shows was redrawn.")
    steps_taken: int = Field(description="Of num_inference_steps: the last ones.")
    uploaded_size: str = Field(description="WIDTHxHEIGHT of the upload, upright.")
    crop: tuple[int, int, int, int] = Field(
        description="Left, top, right and bottom of the part of the upload that was resampled to the size of "
        "the images."
    )
    device_seconds: float = Field(
        description="Reading and encoding the upload, a part of the stage `decode`."
    )


class Cost(BaseModel):
    """What the request used and cost, over all its images."""

    model: str
    seeds: list[int] = Field(
        description="One per image, all equal: the noise of image k depends on the seed and k. To get "
        "image k again, send the same request with this seed and an n of at least k + 1."
    )
    solver: str
    num_inference_steps: int
    guidance_scale: float = Field(description="As applied: 1, without guidance, for any request up to 1.")
    timestep_spacing: str
    eta: float
    guidance_interval: tuple[float, float]
    guidance_stride: int
    guidance_rescale: float
    edit: Edit | None = Field(None, description="Of requests for edits.")
    previews: int = Field(description="Previews that were drawn; `device_seconds` and `flops` include them.")
    nfe: int = Field(description="Network evaluations; one under guidance counts once.")
    rows: int = Field(description="Rows of the network's batch: two per evaluation under guidance, else one.")
    flops: int = Field(description="Floating-point operations of all stages.")
    device_seconds: StageSeconds = Field(description="This request's share of each stage's device time.")
    queue_seconds: float = Field(description="Waiting time, summed over images and stages.")
    seconds: float = Field(description="From the request's arrival to its response.")
    promised_seconds: float | None = Field(
        None, description="In which the response was promised; null if nothing was."
    )
    forecast_seconds: float | None = Field(
        None, description="In which the response was expected when the request was let in."
    )
    store_seconds: float = Field(description="Of these, waiting for the image store.")
    stored_bytes: int = Field(description="Bytes of the images that were stored.")
    truncated: bool = Field(
        description="Whether a text was longer than the text encoder can read, and was cut."
    )
    unknown_words: list[str] = Field(
        description="Words that the text encoder does not know; they do not affect the image."
    )
    prompt_syntax: list[str] = Field(
        description="Weights, LoRA tags, command flags and the like that were found in the texts. None is "
        "obeyed: the embedded model draws the words without them, others read them as plain text."
    )
    corrected_words: dict[str, str] = Field(
        description="Words that were not known, and the known words one edit away that were read instead."
    )
    batch_invariant: bool = Field(
        description="Whether the same request is proved to give the same bytes in any batch on this device."
    )
    adjusted: list[Adjustment] = Field(
        description="What was read in another way than it was written; the header x-safelight-adjusted has "
        "the names. The request header `x-safelight-strict: 1` refuses such requests."
    )


class Usage(BaseModel):
    """OpenAI's usage over all images of the request, and Safelight's own."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int
    safelight: Cost


class ImageResponse(BaseModel):
    """OpenAI's images response."""

    created: int = Field(description="Unix time of the response.")
    background: Literal["opaque"] = "opaque"
    data: list[Image]
    output_format: str
    quality: Quality = Field(description="The best quality whose number of steps was reached.")
    size: str
    usage: Usage


class ForecastDetail(BaseModel):
    """When a request that was refused would be answered."""

    seconds: float = Field(description="In which its images would be there.")
    promised_seconds: float = Field(description="In which they would have to be there.")
    retry_seconds: float = Field(description="After which it would be let in.")


class QuoteResponse(BaseModel):
    """What a request for images would be told, if it came now."""

    admitted: bool = Field(description="Whether it would be let in.")
    forecast_seconds: float = Field(description="In which its images would be there.")
    promised_seconds: float | None = Field(description="In which they would be promised; null: not at all.")
    retry_seconds: float = Field(description="After which it would be let in; 0 if it would be now.")
    backlog_seconds: float = Field(description="Work of the denoiser before it, in seconds of its device.")
    model: str


class ErrorDetail(BaseModel):
    """The content of OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None
    forecast: Annotated[ForecastDetail | None, Field(description="Of `promise_refused` only.")] = None


class ErrorResponse(BaseModel):
    """OpenAI's error object, with the request's id, which is also the header `X-Request-ID`."""

    error: ErrorDetail
    request_id: str


class Moderation(BaseModel):
    """What the operator has filtered; nothing is unless this says so."""

    prompts: bool = Field(False, description="Whether prompts are refused that hold denied words.")
    images: bool = Field(False, description="Whether a classifier may refuse finished images.")


class Model(BaseModel):
    """OpenAI's model object, with the values that requests may use."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "safelight"
    licence: str
    aliases: list[str]
    sizes: list[str]
    solvers: list[str]
    timestep_spacings: list[str]
    defaults: dict[str, str | int | float]
    limits: dict[str, Annotated[list[int | float], Field(min_length=2, max_length=2)]] = Field(
        description="The least and the most of a number, by field; of `prompt` its characters."
    )
    edits: Annotated[bool, Field(description="Whether the model edits images.")] = False
    moderation: Moderation = Moderation(prompts=False, images=False)
    # The denoiser's attention back end, once it has reported its status.
    attention: str | None = None


class Curve(BaseModel):
    """Device time of one stage by work: `seconds` for each of `work_flops`, times the current `factor`."""

    work_flops: list[float]
    seconds: list[float]
    factor: float


class Curves(BaseModel):
    """The cost curve of a text, of a denoiser's tick and of a decoded image; null until one was measured."""

    model: str = Field(description="The id of the model that they belong to.")
    max_rows: int = Field(description="Most rows of the network in a tick.")
    max_tokens: int = Field(
        description="Most image tokens in a tick; 0: those of `max_rows` rows at the model's native size."
    )
    encode: Curve | None
    denoise: Curve
    decode: Curve | None


class ModelList(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[Model]


class StageReadiness(BaseModel):
    """Whether a stage answers, and the images that it has finished."""

    ready: bool
    asleep: bool = Field(description="Whether it has no replica until the next image comes.")
    pictures: int


class Readiness(BaseModel):
    """Ready when every stage has drawn a warm-up image and answers."""

    ready: bool
    stages: dict[str, StageReadiness]
    # Why the last warm-up image failed.
    reason: str | None = None
    # Whether the model cannot draw at all, so that the warm-up is not tried again.
    failed: bool = False
