"""Flags that several commands share."""

import argparse


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add `--model`."""
    parser.add_argument(
        "--model", metavar="NAME_OR_DIR", help="an embedded model or a checkpoint folder; default emoji-128"
    )


def add_quantization(parser: argparse.ArgumentParser) -> None:
    """Add `--quantization`."""
    parser.add_argument(
        "--quantization",
        metavar="none|int8",
        help="quantization of the denoiser's large layers; default none",
    )
