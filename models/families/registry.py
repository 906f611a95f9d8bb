"""The list of model families, and the lookup of a folder's family and of a configuration's network.

No torch is imported here.
To add a family, write its module and add its `FAMILIES` below (docs/adding-a-model.md).
"""

from pathlib import Path
from typing import Any

from safelight.models.checkpoints.json_files import CheckpointError, read_json
from safelight.models.families import class_dit, pixart, sd3
from safelight.models.families.spec import Family, NetworkSpec, PartConfig, PublishedPart

# If several families match a folder, the first one is used.
FAMILIES: tuple[Family, ...] = (*pixart.FAMILIES, *sd3.FAMILIES, *class_dit.FAMILIES)

OLD_CLASS = "Transformer2DModel"  # in older folders, where the norm alone identifies the network


def list_families() -> tuple[Family, ...]:
    """Every family that a checkpoint folder may belong to."""
    return FAMILIES


def recognise(folder: Path) -> Family:
    """The family of the checkpoint in `folder`, by its configurations.

    Raises `CheckpointError` if no family matches.
    """
    pipeline = read_json(folder / "model_index.json").get("_class_name")
    for family in FAMILIES:
        if family.pipeline == pipeline and family.matches(folder):
            return family
    supported = ", ".join(dict.fromkeys(f"{family.pipeline} {family.variant}".strip() for family in FAMILIES))
    raise CheckpointError(f"{folder}: {pipeline!r} with these parts is not supported; supported: {supported}")


def list_networks() -> dict[str, NetworkSpec[Any]]:
    """The networks of all families, by their class in transformer/config.json."""
    return {family.network.class_name: family.network for family in FAMILIES}


def network_class(config: PartConfig) -> Any:
    """The current name of the class in a transformer's `config`; None if it has none."""
    name = config.get("_class_name")
    if name != OLD_CLASS:
        return name
    by_norm = {
        network.norm_type: network.class_name for network in list_networks().values() if network.norm_type
    }
    return by_norm.get(str(config.get("norm_type")), name)


def find_network(config: PartConfig) -> NetworkSpec[Any] | None:
    """The network that a transformer's `config` describes, or None if its class is not supported."""
    name = network_class(config)
    return list_networks().get(name) if isinstance(name, str) else None


def network_of(config: object) -> NetworkSpec[Any]:
    """The network of a configuration, by its type. Raises `TypeError` if no family has that type."""
    for family in FAMILIES:
        if type(config) is family.network.config_class:
            return family.network
    raise TypeError(f"{type(config).__name__} is not the configuration of a network in the registry")


def list_published_parts() -> dict[str, PublishedPart]:
    """The parts of all published checkpoints by name: text encoders, then transformers, then autoencoders."""
    checkpoints = [family.published for family in FAMILIES if family.published is not None]
    last = ("transformer", "vae")
    encoders = [
        part for checkpoint in checkpoints for folder, part in checkpoint.parts.items() if folder not in last
    ]
    others = [checkpoint.parts[folder] for folder in last for checkpoint in checkpoints]
    return {part.name: part for part in (*encoders, *others)}
