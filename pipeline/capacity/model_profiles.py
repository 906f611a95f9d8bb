"""Profiles of models for the capacity model: of a checkpoint folder or of a published checkpoint.

Only configurations are read, and no torch is imported here.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from safelight.models.autoencoders.options import read_options
from safelight.models.checkpoints.json_files import read_json, spatial_compression
from safelight.models.checkpoints.options import find_unknown
from safelight.models.checkpoints.read_options import ReadOptions
from safelight.models.families.published_shapes import find_shape
from safelight.models.families.published_shapes import list_shapes as list_shapes
from safelight.models.families.registry import list_networks, network_class, recognise
from safelight.models.families.spec import Configs, Family, PublishedCheckpoint, has_part
from safelight.pipeline.capacity.image_cost import ModelProfile, Size
from safelight.pipeline.capacity.unserved_profiles import UNSERVED
from safelight.pipeline.catalog.model_info import ModelInfo
from safelight.pipeline.diffusion.schedules import Flow, Schedule, VariancePreserving
from safelight.pipeline.flops.vae import decode_flops


def list_published() -> tuple[str, ...]:
    """The names of the published checkpoints that can be profiled without a folder."""
    return (*list_shapes(), *UNSERVED)


def model_profile(model: ModelInfo) -> ModelProfile:
    """The profile of a model in a folder, from its configurations alone."""
    family = recognise(model.path)
    profile = _profile(
        name=model.id,
        family=family,
        configs=_read_configs(family, model.path, model.read_options),
        native_size=model.native_size,
        schedule=model.schedule,
        prediction=model.prediction,
        sizes=model.sizes,
    )
    return replace(
        profile,
        num_steps=model.num_steps,
        guidance_scale=model.guidance_scale,
        solver=model.solver,
        request_size=model.request_size,
    )


def published_profile(name: str) -> ModelProfile:
    """The profile of a published checkpoint. Raises `KeyError` for a name that is not in `list_published`."""
    if name in UNSERVED:
        return UNSERVED[name]()
    return checkpoint_profile(*find_shape(name))


def checkpoint_profile(family: Family, published: PublishedCheckpoint) -> ModelProfile:
    """The profile of a published checkpoint of `family`."""
    configs = published.configs
    side = configs["transformer"]["sample_size"] * spatial_compression(configs["vae"])
    shift = published.flow_shift
    return _profile(
        name=published.name,
        family=family,
        configs=configs,
        native_size=(side, side),
        schedule=VariancePreserving("linear") if shift is None else Flow(shift),
        prediction="epsilon" if shift is None else "flow",
        sizes=(),
    )


def _read_configs(family: Family, folder: Path, options: ReadOptions) -> Configs:
    """The configuration of every part that the checkpoint has, without options that are ignored."""
    configs = {
        part.folder: read_json(folder / part.folder / part.config_file)
        for part in family.parts
        if has_part(folder, part) and (folder / part.folder / part.config_file).exists()
    }
    if options.allow_unknown_config:
        for part, read in (("transformer", family.network.read_config), ("vae", read_options)):
            unknown = find_unknown(read, configs[part])
            configs[part] = {key: value for key, value in configs[part].items() if key not in unknown}
    return configs


def _profile(
    *,
    name: str,
    family: Family,
    configs: Configs,
    native_size: Size,
    schedule: Schedule,
    prediction: str,
    sizes: tuple[Size, ...],
) -> ModelProfile:
    network = list_networks()[network_class(configs["transformer"])]
    config = network.read_config(configs["transformer"])
    states = family.conditioning.num_states(configs)

    def once(num_times: int, num_texts: int) -> int:
        per_text = network.text_flops(config, states) + network.row_flops(config, states, num_times)
        return network.times_flops(config, num_times) + num_texts * per_text

    return ModelProfile(
        name=name,
        native_size=native_size,
        num_steps=family.num_steps,
        guidance_scale=family.guidance_scale,
        solver=family.solver,
        timestep_spacing=family.timestep_spacing,
        schedule=schedule,
        prediction=prediction,
        text=family.conditioning.flops(configs),
        evaluation=lambda height, width: network.forward_flops(config, height, width, states),
        once=once,
        decode=partial(decode_flops, read_options(configs["vae"])),
        scale=spatial_compression(configs["vae"]),
        patch=config.patch_size,
        sizes=sizes,
        text_bytes=network.text_bytes(config, states),
        latent_channels=config.in_channels,
    )
