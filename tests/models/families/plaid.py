"""A made-up model family in one module: a convolution shifted by the bytes of the prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safelight.models.autoencoders.options import TinyOptions
from safelight.models.autoencoders.tiny import AutoencoderTiny
from safelight.models.checkpoints.options import checked, refuse_unknown
from safelight.models.checkpoints.read_options import ReadOptions
from safelight.models.checkpoints.writer import FLOW_SCHEDULER, write_part
from safelight.models.families.spec import (
    Configs,
    Family,
    NetworkSpec,
    PartConfig,
    TextConditioning,
    count_image_tokens,
    patch_flops,
)
from safelight.models.text.reading import Reading

NUM_STATES, NUM_BYTES = 8, 256


@dataclass(frozen=True, slots=True)
class PlaidConfig:
    in_channels: int = 4
    patch_size: int = 2
    sample_size: int = 16
    width: int = 16

    @property
    def is_sized(self) -> bool:
        return False


@dataclass(frozen=True, slots=True, weakref_slot=True)
class PlaidRow:
    """One text at the times of a plan: `shifts` (T, D)."""

    shifts: Tensor
    text_tokens = NUM_STATES


class PlaidNetwork(nn.Module):
    """Patches to tokens, a shift by time and text, tokens to patches."""

    def __init__(self, config: PlaidConfig) -> None:
        super().__init__()
        self.config = config
        patch = config.patch_size
        self.enter = nn.Conv2d(config.in_channels, config.width, kernel_size=patch, stride=patch)
        self.text = nn.Linear(NUM_BYTES, config.width)
        self.leave = nn.ConvTranspose2d(config.width, config.in_channels, kernel_size=patch, stride=patch)

    def prepare_times(self, timesteps: Tensor, size: tuple[int, int]) -> Tensor:
        return timesteps.to(self.text.weight.dtype)[:, None] / 1000

    def prepare_row(self, states: Tensor, mask: Tensor, pooled: Tensor | None, times: Tensor) -> PlaidRow:
        return PlaidRow(times * self.text(states).mean(dim=0))

    def collate(self, rows: Sequence[PlaidRow]) -> list[Tensor]:
        return [row.shifts for row in rows]

    def predict(self, x: Tensor, rows: list[Tensor], steps: Sequence[int]) -> Tensor:
        shift = torch.stack([shifts[step] for shifts, step in zip(rows, steps, strict=True)])
        prediction: Tensor = self.leave(self.enter(x) + shift[:, :, None, None])
        return prediction


class PlaidSpec(NetworkSpec[PlaidConfig]):
    class_name = "PlaidTransformer2DModel"
    config_class = PlaidConfig
    title = "a plaid network"
    packs_rows = False

    def read_config(self, config: PartConfig) -> PlaidConfig:
        refuse_unknown(config, PlaidConfig.__slots__)
        return checked(PlaidConfig, config)

    def build(self, config: PlaidConfig) -> nn.Module:
        return PlaidNetwork(config)

    def example_text(
        self, config: PlaidConfig, num_states: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        length = NUM_STATES if num_states is None else num_states
        return torch.ones(length, NUM_BYTES), torch.ones(length, dtype=torch.bool), None

    def forward_flops(self, config: PlaidConfig, height: int, width: int, text_tokens: int) -> int:
        tokens = count_image_tokens(config, height, width)
        return patch_flops(config, config.width, config.in_channels, tokens)

    def text_flops(self, config: PlaidConfig, text_tokens: int) -> int:
        return 0

    def row_flops(self, config: PlaidConfig, text_tokens: int, num_times: int) -> int:
        return 2 * text_tokens * NUM_BYTES * config.width

    def times_flops(self, config: PlaidConfig, num_times: int) -> int:
        return 0


class ByteTower:
    """The first bytes of a text, one hot."""

    flops_per_text = 0

    def read(self, text: str) -> Reading:
        data = text.encode()
        padded = torch.tensor(list(data[:NUM_STATES].ljust(NUM_STATES, b"\0")))
        states = nn.functional.one_hot(padded, NUM_BYTES).float()
        mask = torch.ones(NUM_STATES, dtype=torch.bool)
        return Reading(states, mask, None, len(data), len(data) > NUM_STATES)


class ByteConditioning(TextConditioning):
    @property
    def description(self) -> str:
        return "the bytes of the prompt"

    def load_tower(
        self, folder: Path, device: torch.device, dtype: torch.dtype, options: ReadOptions
    ) -> ByteTower:
        return ByteTower()

    def check_fit(self, folder: Path) -> None:
        pass

    def check(self, folder: Path) -> None:
        pass

    def num_states(self, configs: Configs) -> int:
        return NUM_STATES

    def flops(self, configs: Configs) -> int:
        return 0


FAMILY = Family(
    name="plaid",
    pipeline="PlaidPipeline",
    variant="",
    matches=lambda folder: True,
    network=PlaidSpec(),
    conditioning=ByteConditioning(),
    num_steps=4,
    guidance_scale=2.0,
    solver="euler",
    schedule="flow",
    sides=(128,),
    has_buckets=True,
    licence="none: random weights",
    origin=(),
)


def write_plaid(folder: Path, **options: Any) -> None:
    """Write a checkpoint of random weights, with `options` of the network's configuration, into `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = PlaidNetwork(PlaidConfig())
        vae_options = TinyOptions(
            encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, latent_channels=4,
            num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1),
        )  # fmt: skip
        vae = AutoencoderTiny(vae_options)
    config = {"_class_name": PlaidSpec.class_name, **asdict(network.config), **options}
    write_part(folder / "transformer", config, network.state_dict())
    write_part(folder / "vae", vae_options.to_diffusers(), vae.state_dict())
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(FLOW_SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": FAMILY.pipeline}))
