"""Reads the fields of `/sdapi/v1/txt2img` as those of `/v1/images/generations`, and writes the answer."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from safelight.pipeline.catalog.model_info import MAX_SEED
from safelight.pipeline.params import GenerationParams
from safelight.service.http.generation import Generation
from safelight.service.http.reading.model_names import ModelNames
from safelight.service.http.schemas import MAX_IMAGES
from safelight.service.http.sdapi.samplers import AUTOMATIC, sampler_name

# Fields that a generation has under another name.
NAMES = {"steps": "num_inference_steps", "cfg_scale": "guidance_scale"}
SAMPLER_NAMES = ("sampler_name", "sampler_index")
HASH = re.compile(r" \[[0-9a-f]+\]$")
PLAIN = ("prompt", "negative_prompt", "seed", "width", "height")


def generation_fields(body: Mapping[str, object], names: ModelNames) -> dict[str, object]:
    """The fields of a generation that `body` asks for; fields that mean nothing here are left out.

    Where one model is served, it draws whatever `body` calls it: programs send the names of theirs.
    """
    fields = {name: body[name] for name in PLAIN if body.get(name) is not None}
    fields |= {ours: body[name] for name, ours in NAMES.items() if body.get(name) is not None}
    fields["n"] = min(_count(body.get("batch_size")) * _count(body.get("n_iter")), MAX_IMAGES)
    fields |= {name: body[name] for name in SAMPLER_NAMES if body.get(name) not in (None, "")}
    if names.others and (model := _checkpoint(body.get("override_settings"))):
        fields["model"] = model
    scheduler = body.get("scheduler")
    if isinstance(scheduler, str) and scheduler.lower() not in ("", AUTOMATIC):
        fields["scheduler"] = scheduler
    return fields


def with_seeds(params: Sequence[GenerationParams]) -> list[GenerationParams]:
    """Image k with the seed plus k, as in AUTOMATIC1111: each can be drawn again alone, by its own seed."""
    return [
        replace(image, seed=(image.seed + image.image_index) % (MAX_SEED + 1), image_index=0)
        for image in params
    ]


def describe_parameters(params: Sequence[GenerationParams]) -> dict[str, Any]:
    """The parameters that were used, by AUTOMATIC1111's names."""
    first = params[0]
    return {
        "prompt": first.prompt,
        "negative_prompt": first.negative_prompt,
        "seed": first.seed,
        "steps": first.num_steps,
        "cfg_scale": first.guidance_scale,
        "width": first.width,
        "height": first.height,
        "sampler_name": sampler_name(first.solver),
        "scheduler": first.timestep_spacing,
        "batch_size": len(params),
        "n_iter": 1,
    }


def describe_info(generation: Generation, model_id: str, infotexts: Sequence[str]) -> str:
    """The JSON in the field `info`: what was drawn, image by image, and what it cost."""
    params = generation.params
    seeds = [image.seed for image in params]
    info = describe_parameters(params) | {
        "all_prompts": [image.prompt for image in params],
        "all_negative_prompts": [image.negative_prompt for image in params],
        "all_seeds": seeds,
        "subseed": seeds[0],
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "sd_model_name": model_id,
        "sd_model_hash": None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": list(infotexts),
        "styles": [],
        "safelight": generation.usage.safelight.model_dump(mode="json"),
    }
    return json.dumps(info)


def encode_images(generation: Generation, is_sent: bool) -> list[str]:
    """The files in base64; none if the request asks for none."""
    return [base64.b64encode(result.image).decode("ascii") for result in generation.results] * is_sent


def _checkpoint(override_settings: object) -> str:
    """The name of the model in `override_settings`, without AUTOMATIC1111's hash behind it."""
    if not isinstance(override_settings, Mapping):
        return ""
    name = override_settings.get("sd_model_checkpoint")
    return HASH.sub("", name).strip() if isinstance(name, str) else ""


def _count(value: object) -> int:
    """A number of images of at least 1; what is none counts as 1."""
    try:
        return max(int(float(str(value))), 1)
    except (ValueError, OverflowError):
        return 1
