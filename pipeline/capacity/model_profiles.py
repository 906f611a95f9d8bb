"""The outlines of models: of a checkpoint folder from its configs, of a published one from the numbers that are kept of it.

No torch at import: the configurations of networks and towers are read by modules that need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safelight.models.checkpoints.families import (
    FAMILIES,
    Family,
    Part,
    network_class,
    recognise,
    spatial_compression,
)
from safelight.models.checkpoints.json_files import CLIP_CONFIG, read_json
from safelight.models.checkpoints.published import PARTS, PUBLISHED
from safelight.pipeline.capacity.image_cost import ModelProfile, Size
from safelight.pipeline.capacity.unserved_profiles import UNSERVED
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.diffusion.schedules import Flow, Schedule, VariancePreserving
from safelight.pipeline.flops.text import clip_flops, open_clip_flops, t5_flops
from safelight.pipeline.flops.vae import decode_flops

SD3_T5_TOKENS = 256  # that T5 reads beside two CLIPs
NAMES = {"sd3": "sd3-medium"}  # of published checkpoints, where it is not their family's

Configs = Mapping[str, dict[str, Any]]  # by the folder of the part


def list_published() -> tuple[str, ...]:
    """The names of published checkpoints whose work is known without a folder."""
    return (*(NAMES.get(family, family) for family in PUBLISHED), *UNSERVED)


def model_profile(model: ModelInfo) -> ModelProfile:
    """The work of a model in a folder, from its configs alone."""
    family = recognise(model.path)
    configs = {
        part.folder: read_json(path)
        for part in family.parts
        if (path := _config_path(model.path, part)).exists()
    }
    return _outline(
        model.id, family, configs, model.native_size, model.schedule, model.prediction, model.sizes
    )


def published_profile(name: str) -> ModelProfile:
    """The work of a published checkpoint. Raises `KeyError` for a name that is not in `list_published`."""
    if name in UNSERVED:
        return UNSERVED[name]()
    key = {NAMES.get(family, family): family for family in PUBLISHED}[name]
    family, published = next(family for family in FAMILIES if family.name == key), PUBLISHED[key]
    side = published.transformer["sample_size"] * spatial_compression(published.vae)
    is_flow = family.schedule.startswith("flow")
    schedule: Schedule = Flow(3.0) if is_flow else VariancePreserving("linear")
    configs = {folder: PARTS[part] for folder, part in published.parts.items()}
    return _outline(name, family, configs, (side, side), schedule, "flow" if is_flow else "epsilon", ())


def _outline(
    name: str,
    family: Family,
    configs: Configs,
    native: Size,
    schedule: Schedule,
    prediction: str,
    sizes: tuple[Size, ...],
) -> ModelProfile:
    from safelight.models.denoisers import NETWORK_KINDS
    from safelight.pipeline.flops.denoiser import forward_flops, row_flops, text_flops, times_flops

    transformer = configs["transformer"]
    network = NETWORK_KINDS[network_class(transformer)].read(transformer)
    states = _num_states(family, configs)

    def once(num_times: int, num_texts: int) -> int:
        return times_flops(network, num_times) + num_texts * (
            text_flops(network, states) + row_flops(network, states, num_times)
        )

    return ModelProfile(
        name=name,
        native_size=native,
        num_steps=family.num_steps,
        guidance_scale=family.guidance_scale,
        solver=family.solver,
        timestep_spacing=family.timestep_spacing,
        schedule=schedule,
        prediction=prediction,
        text=sum(
            _tower_flops(family, part, configs[part.folder])
            for part in family.parts
            if part.folder in configs
        ),
        evaluation=lambda height, width: forward_flops(network, height, width, states),
        once=once,
        decode=partial(decode_flops, configs["vae"]),
        scale=spatial_compression(configs["vae"]),
        patch=network.patch_size,
        sizes=sizes,
    )


def _tower_flops(family: Family, part: Part, config: dict[str, Any]) -> int:
    """Of one text encoder; nothing for the other parts."""
    from safelight.models.checkpoints.options import checked

    if part.kind == "open_clip":
        return open_clip_flops(config["model_cfg"])
    if part.kind == "t5":
        from safelight.models.text.t5 import T5EncoderConfig

        return t5_flops(checked(T5EncoderConfig, config, least=0), family.text_tokens or SD3_T5_TOKENS)
    if part.kind == "clip":
        from safelight.models.text.hf_clip import ClipTextConfig

        return clip_flops(checked(ClipTextConfig, config, least=0))
    return 0


def _num_states(family: Family, configs: Configs) -> int:
    """How many states a text of full length has; SD3's has T5's in any case, zeros if there is none."""
    kind = family.parts[0].kind
    if kind == "open_clip":
        return 1 + int(configs[family.parts[0].folder]["model_cfg"]["text_cfg"].get("context_length", 77))
    if kind == "clip":
        return int(configs[family.parts[0].folder].get("max_position_embeddings", 77)) + SD3_T5_TOKENS
    return family.text_tokens or 0


def _config_path(folder: Path, part: Part) -> Path:
    return folder / part.folder / (CLIP_CONFIG if part.kind == "open_clip" else "config.json")
