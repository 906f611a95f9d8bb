"""The names under which other servers' clients send the fields of a request, as data."""

import difflib
import re
from functools import lru_cache

from safelight.service.http.schemas import ImageRequest

FIELDS = tuple(ImageRequest.model_fields)
# Objects that clients send literally instead of merging them into the body.
WRAPPERS = ("extra_body", "extra_json")

# Other names of a field, in order of precedence.
SIBLINGS: dict[str, tuple[str, ...]] = {
    "num_inference_steps": (
        "steps",
        "num_steps",
        "sampling_steps",
        "sample_steps",
        "inference_steps",
        "diffusion_steps",
    ),
    "guidance_scale": ("cfg_scale", "true_cfg_scale", "guidance", "cfg", "text_cfg_scale"),
    "solver": ("sampler", "sampler_name", "sample_method", "sampling_method", "sampler_index"),
    "n": (
        "batch_size",
        "num_images",
        "num_images_per_prompt",
        "num_outputs",
        "number_of_images",
        "batch_count",
        "n_iter",
    ),
    "size": ("image_size", "resolution", "dimensions"),
    "seed": ("random_seed", "noise_seed", "manual_seed"),
    "negative_prompt": ("negative", "neg_prompt", "negative_text"),
    "timestep_spacing": ("schedule_type", "noise_schedule", "spacing"),
    "guidance_rescale": ("cfg_rescale", "rescale_cfg"),
    "output_format": ("format", "image_format", "file_format"),
    "output_compression": ("output_quality", "compression_quality", "jpeg_quality"),
    "safety_identifier": ("user_id", "end_user"),
}
# Names whose values belong to more than one field, or to another by their value.
SPECIAL = ("width", "height", "aspect_ratio", "scheduler")
_FIELD_OF = {name: field for field, names in SIBLINGS.items() for name in names}
_ALL_NAMES = (*FIELDS, *_FIELD_OF, *SPECIAL)
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
MIN_SIMILARITY = 0.75
MAX_COMPARED = 40  # characters


def field_of(name: str) -> str | None:
    """The field, or the name in `SPECIAL`, that `name` stands for: `cfgScale` is `guidance_scale`."""
    spellings = (name, _WORD_START.sub("_", name).replace("-", "_").replace(" ", "_").lower())
    for spelling in spellings if len(name) <= MAX_COMPARED else spellings[:1]:
        if spelling in FIELDS or spelling in SPECIAL:
            return spelling
        if spelling in _FIELD_OF:
            return _FIELD_OF[spelling]
    return None


def without_wrapper(name: str) -> str:
    """`seed` for `extra_body.seed`."""
    wrapper, dot, plain = name.partition(".")
    return plain if dot and wrapper in WRAPPERS else name


@lru_cache(maxsize=1024)
def nearest_field(name: str) -> str | None:
    """The field that a mistyped `name` may mean."""
    if len(name) > MAX_COMPARED:
        return None
    matches = difflib.get_close_matches(name.lower(), _ALL_NAMES, 1, MIN_SIMILARITY)
    return field_of(matches[0]) if matches else None
