"""The options of the autoencoders are diffusers', with its defaults; others are refused by name."""

from collections.abc import Callable
from dataclasses import asdict, fields
from inspect import signature
from typing import Any

import pytest
from diffusers import AutoencoderKL, AutoencoderTiny

from safelight.models.autoencoders.options import (
    KL_BLOCKS,
    KL_IGNORED,
    TINY_IGNORED,
    KLOptions,
    TinyOptions,
    read_options,
)
from safelight.models.checkpoints.json_files import CheckpointError

KL: dict[str, Any] = {"_class_name": "AutoencoderKL"}
TINY: dict[str, Any] = {"_class_name": "AutoencoderTiny"}
REFUSED = {"latents_mean", "latents_std"}


@pytest.mark.parametrize(
    ("theirs", "ours", "others"),
    [
        (AutoencoderKL, KLOptions, KL_IGNORED | KL_BLOCKS.keys() | REFUSED),
        (AutoencoderTiny, TinyOptions, TINY_IGNORED - {"block_out_channels"}),
    ],
    ids=["AutoencoderKL", "AutoencoderTiny"],
)
def test_names_and_defaults_are_those_of_diffusers(
    theirs: Callable[..., Any], ours: type[KLOptions] | type[TinyOptions], others: set[str]
) -> None:
    defaults = {
        name: p.default for name, p in signature(theirs.__init__).parameters.items() if name != "self"
    }
    assert asdict(ours()) == {name: value for name, value in defaults.items() if name not in others}
    assert defaults.keys() == {field.name for field in fields(ours)} | others


def test_an_empty_configuration_has_the_defaults() -> None:
    assert read_options(KL) == KLOptions()
    assert read_options(TINY) == TinyOptions()


def test_options_that_change_nothing_are_accepted() -> None:
    tiles = {"sample_size": 512, "force_upcast": True, "_diffusers_version": "0.35.0", "latents_mean": None}
    assert read_options(KL | tiles) == KLOptions()
    stored = {"latent_magnitude": 5, "latent_shift": 0.1, "force_upcast": False, "block_out_channels": [8, 8]}
    assert read_options(TINY | stored) == TinyOptions()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"_class_name": "VQModel"}, "class 'VQModel' is not supported; supported: AutoencoderKL, "),
        ({"_class_name": ["AutoencoderKL"]}, r"class \['AutoencoderKL'\] is not supported"),
        (KL | {"latents_std": [1.0]}, "not supported: latents_std"),
        (KL | {"latent_magnitude": 3}, "not supported: latent_magnitude"),
        (TINY | {"use_quant_conv": True}, "not supported: use_quant_conv"),
        (KL | {"act_fn": "tanh"}, "act_fn is 'tanh', only silu, swish, mish, gelu, relu are supported"),
        (TINY | {"act_fn": "elu"}, "act_fn is 'elu', only silu"),
        (TINY | {"upsample_fn": "linear"}, "upsample_fn is 'linear', only nearest, nearest-exact"),
        (KL | {"in_channels": 10**30}, "in_channels is 10{30}, expected channels from 1 to 65536"),
        (KL | {"out_channels": 10**5}, "out_channels is 100000, expected channels from 1 to 65536"),
        (TINY | {"latent_channels": 10**5}, "latent_channels is 100000, expected channels from 1 to 65536"),
        (KL | {"block_out_channels": []}, r"block_out_channels is \(\), expected channels"),
        (KL | {"block_out_channels": [64, 0]}, r"block_out_channels is \(64, 0\), expected channels"),
        (KL | {"block_out_channels": [48]}, "holds 48, which norm_num_groups 32 does not divide"),
        (
            KL | {"block_out_channels": [64, 64]},
            r"down_block_types is \['DownEncoderBlock2D'\], only \['DownEncoderBlock2D', 'Down",
        ),
        (KL | {"up_block_types": ["AttnUpDecoderBlock2D"]}, "up_block_types is .*, only .* is supported"),
        (KL | {"down_block_types": "DownEncoderBlock2D"}, "down_block_types is 'DownEncoderBlock2D', only"),
        (TINY | {"encoder_block_out_channels": [0] * 4}, "encoder_block_out_channels is .* expected"),
        (
            TINY | {"decoder_block_out_channels": [64, 64, 64, 32]},
            "decoder_block_out_channels is .*, only the same number at every scale is supported",
        ),
        (TINY | {"num_encoder_blocks": [1]}, r"num_encoder_blocks is \[1\], expected 4 numbers from 0 to"),
        (TINY | {"num_decoder_blocks": [1, 1, 1, 1001]}, "num_decoder_blocks is .* from 0 to 1000"),
        (TINY | {"num_decoder_blocks": [1, 1, 1, -1]}, "num_decoder_blocks is .*, expected"),
        (TINY | {"upsampling_scaling_factor": 0}, "upsampling_scaling_factor is 0, expected a whole number"),
    ],
)  # fmt: skip
def test_what_is_not_built_is_refused_by_name(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        read_options(config)


def test_written_options_are_read_again_by_us_and_by_diffusers() -> None:
    options = TinyOptions(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(6, 6), act_fn="gelu",
        upsample_fn="bilinear", latent_channels=5, num_encoder_blocks=(1, 0), num_decoder_blocks=(2, 1),
        scaling_factor=0.7,
    )  # fmt: skip
    written = options.to_diffusers()
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in written.items()}
    assert read_options(listed) == options
    theirs: Any = AutoencoderTiny.from_config(listed)
    assert {name: theirs.config[name] for name in asdict(options)} == {
        name: listed[name] for name in asdict(options)
    }
    assert theirs.config.block_out_channels == listed["block_out_channels"]
