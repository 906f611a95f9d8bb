"""The generation parameters of an image as text for its file.

Two forms are written. `parameters_text` is the line-based form of AUTOMATIC1111's web UI, which most image
tools read. That form has no escapes for prompts, so `parameters_json` holds the same parameters exactly,
under the names of the HTTP API.

How readers take the text apart, and so what is written differently here:

- AUTOMATIC1111 (`modules/infotext_utils.py`, `re_param`): the last line has the settings; a value in double
  quotes is JSON. Lines are stripped, and one that starts with "Negative prompt:" starts the negative prompt.
- CivitAI (`src/utils/metadata/automatic.metadata.ts`): the first line that starts with "Steps: " has the
  settings, "Negative prompt:" counts anywhere, and lines from "Template: " on are dropped.
"""

import json
import re

from safelight.pipeline.params import EditParams, GenerationParams

MAX_PROMPT_BYTES = 30_000  # of UTF-16, for each of two prompts: EXIF in JPEG holds 65,533 bytes in all
NEGATIVE_PROMPT = "Negative prompt:"
# A value with one of these, or with space at its ends, is written in quotes.
UNSAFE_IN_VALUE = re.compile(r'[,:"\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]|^\s|\s$')
# Marks that a reader may look for inside quotes; as JSON escapes they mean the same and mislead nobody.
ESCAPED_IN_VALUE = frozenset(',:"{}[]')
LINE_BREAKS = "\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029"
READ_AS_SETTINGS = re.compile(rf"(^|[{LINE_BREAKS}])(?=(?:Steps|(?:Negative )?Template):)")
NOT_TEXT = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f\ufffe\uffff]")


def parameters_text(params: GenerationParams, model_id: str) -> str:
    """The parameters in the form that image tools read: prompt, negative prompt and a line of settings.

    A prompt that the form cannot hold is changed so that no reader takes a part of it for something else:
    "Negative prompt:" gets a space before its colon, and a line that starts like the settings gets one in
    front, which readers strip. Very long prompts are cut.
    """
    lines = [_as_prompt(params.prompt)]
    if params.negative_prompt:
        lines.append(f"{NEGATIVE_PROMPT} {_as_prompt(params.negative_prompt)}")
    settings = _settings(params) | {"Model": model_id}  # last: a long or odd name can hide no other value
    lines.append(", ".join(f"{name}: {_as_value(value)}" for name, value in settings.items()))
    return "\n".join(lines)


def parameters_json(params: GenerationParams, model_id: str) -> str:
    """The parameters exactly, as a JSON object in ASCII with the names of the HTTP API."""
    edit = params.edit
    fields = {} if edit is None else {"strength": edit.strength, "inpainting": edit.is_inpainting}
    return json.dumps(
        {
            "model": model_id,
            "prompt": params.prompt,
            "negative_prompt": params.negative_prompt,
            "size": f"{params.width}x{params.height}",
            "num_inference_steps": params.num_steps,
            "guidance_scale": params.guidance_scale,
            "guidance_interval": params.guidance_interval,
            "guidance_stride": params.guidance_stride,
            "guidance_rescale": params.guidance_rescale,
            "solver": params.solver,
            "timestep_spacing": params.timestep_spacing,
            "eta": params.eta,
            "seed": params.seed,
            "image_index": params.image_index,
        }
        | fields
    )


def _settings(params: GenerationParams) -> dict[str, object]:
    settings: dict[str, object] = {
        "Steps": params.num_steps,
        "Sampler": params.solver,
        "CFG scale": f"{params.guidance_scale:g}",
        "Seed": params.seed,
        "Image index": params.image_index,
        "Size": f"{params.width}x{params.height}",
    }
    start, end = params.guidance_interval
    if_not_default = {
        "Schedule type": (params.timestep_spacing, params.timestep_spacing != "trailing"),
        "Eta": (f"{params.eta:g}", params.eta > 0.0),
        "CFG interval": (f"{start:g}-{end:g}", (start, end) != (0.0, 1.0)),
        "CFG stride": (params.guidance_stride, params.guidance_stride > 1),
        "CFG rescale": (f"{params.guidance_rescale:g}", params.guidance_rescale > 0.0),
    }
    settings |= {name: value for name, (value, is_set) in if_not_default.items() if is_set}
    return settings if params.edit is None else settings | _edit_settings(params.edit)


def _edit_settings(edit: EditParams) -> dict[str, object]:
    """The strength by the name that image tools read, and Safelight's own mark of an inpainted image."""
    return {"Denoising strength": f"{edit.strength:g}"} | ({"Inpainting": True} if edit.is_inpainting else {})


def _as_value(value: object) -> str:
    """`value` as it stands if that is unambiguous, else as JSON in quotes."""
    text = str(value)
    if not UNSAFE_IN_VALUE.search(text):
        return text
    return '"' + "".join(map(_escape, text)) + '"'


def _escape(character: str) -> str:
    return f"\\u{ord(character):04x}" if character in ESCAPED_IN_VALUE else json.dumps(character)[1:-1]


def _as_prompt(text: str) -> str:
    """A prompt that no reader takes for anything else."""
    text = NOT_TEXT.sub(" ", text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    text = text.replace(NEGATIVE_PROMPT, "Negative prompt :")
    return _shortened(READ_AS_SETTINGS.sub(r"\1 ", text))


def _shortened(text: str) -> str:
    """`text`, cut to `MAX_PROMPT_BYTES`."""
    encoded = text.encode("utf-16-le")
    if len(encoded) <= MAX_PROMPT_BYTES:
        return text
    return encoded[: MAX_PROMPT_BYTES - 2].decode("utf-16-le", "ignore") + "…"
