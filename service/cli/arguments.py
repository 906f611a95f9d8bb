"""Flags that several commands share, and the settings that they give."""

import argparse
from typing import Any

from safelight.service.settings import DEFAULT_MODELS

# Settings that decide which model is served and how: `model_settings` reads their flags.
MODEL_SETTINGS = (
    "model", "served_name", "variant", "allow_unknown_config",
    "default_steps", "default_guidance", "default_solver", "default_size",
)  # fmt: skip


def add_model(parser: argparse.ArgumentParser | argparse._ArgumentGroup, names: str = "") -> None:
    """Add `--model`, and the flags that say what is read of its folder.

    `names` is what `--model` may name beside an embedded model, a folder and a cached model.
    """
    parser.add_argument(
        "--model",
        metavar="NAME_OR_DIR",
        help="an embedded model, a checkpoint folder, or the id of a model in the Hugging Face cache"
        f"{names}; default {','.join(DEFAULT_MODELS)}",
    )
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the flags that say what is read of a checkpoint folder."""
    parser.add_argument(
        "--variant",
        metavar="NAME",
        help="variant of the weight files, such as fp16; default: see docs/models.md",
    )
    parser.add_argument(
        "--allow-unknown-config",
        action="store_true",
        default=None,
        help="ignore options in the configurations that are not known; default: refuse them",
    )


def add_served_name(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add `--served-name`."""
    parser.add_argument(
        "--served-name",
        metavar="NAME",
        help="name of the model in requests and answers, or MODEL=NAME,MODEL2=NAME2; default: its id",
    )


def add_defaults(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the operator's defaults for requests."""
    group = parser.add_argument_group("defaults of requests that do not say; by default the model's")
    group.add_argument("--default-steps", metavar="N", help="denoising steps")
    group.add_argument("--default-guidance", metavar="W", help="guidance scale")
    group.add_argument("--default-solver", metavar="NAME", help="one of `safelight solvers`")
    group.add_argument("--default-size", metavar="WxH", help="image size in pixels")


def model_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that are given by the flags above, of those that the command has."""
    return {name: value for name in MODEL_SETTINGS if (value := getattr(args, name, None)) is not None}


def add_quantization(parser: argparse.ArgumentParser) -> None:
    """Add `--quantization`."""
    parser.add_argument(
        "--quantization",
        metavar="none|int8",
        help="quantization of the denoiser's large layers; default none",
    )
