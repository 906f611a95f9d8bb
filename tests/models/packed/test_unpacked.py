"""A network whose rows are not packed gives a row the same bits alone and in any batch, on a processor."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from safelight.models.denoisers import pack
from safelight.models.networks.class_dit import ClassDiT
from safelight.models.networks.config import ClassDiTConfig
from safelight.models.networks.interface import PackedNetwork, Row
from safelight.models.packed.unpacked import PerShapeNetwork

# Products that a library orders by the number of rows: on a processor with AVX2, those of the first.
CONFIGS = (
    ClassDiTConfig(num_attention_heads=2, attention_head_dim=16, out_channels=8, num_layers=2, sample_size=8),
    ClassDiTConfig(num_attention_heads=4, attention_head_dim=72, num_layers=1, sample_size=16),
)
TIMES = torch.tensor([900.0, 500.0, 100.0])
SIDE = 8


def randomise(module: nn.Module) -> None:
    """Gates are open, so that every layer counts."""
    g = torch.Generator().manual_seed(0)
    for tensor in module.state_dict().values():
        tensor.copy_(torch.empty(tensor.shape).normal_(0.0, 0.2, generator=g))


def make_rows(network: PackedNetwork, count: int) -> list[Row]:
    times = network.prepare_times(TIMES, (SIDE, SIDE))
    states, mask = torch.empty(0, 0), torch.empty(0, dtype=torch.bool)
    return [
        network.prepare_row(network.prepare_text(states, mask, torch.tensor([k])), times)
        for k in range(count)
    ]


def predict(
    network: PackedNetwork, rows: Sequence[Row], latents: Sequence[Tensor], steps: Sequence[int]
) -> list[Tensor]:
    """The prediction of each row, all of them in one evaluation; rows of one shape are adjacent."""
    shapes = [(x.shape[-2], x.shape[-1]) for x in latents]
    groups = [list(group) for _, group in itertools.groupby(latents, key=lambda x: x.shape)]
    stacked = [torch.stack(group) for group in groups]
    outputs = network.predict(stacked, network.collate(rows, shapes), steps)
    assert [len(output) for output in outputs] == [len(group) for group in groups]
    return [row for output in outputs for row in output]


@pytest.mark.parametrize("config", CONFIGS, ids=["small", "wide"])
@torch.inference_mode()
def test_a_row_has_the_same_bits_alone_and_in_a_batch(config: ClassDiTConfig) -> None:
    plain = ClassDiT(config).eval()
    randomise(plain)
    network = pack(plain)
    g = torch.Generator().manual_seed(1)
    sides = [(SIDE, SIDE)] * 4 + [(SIDE, 2 * SIDE)] * 3
    latents = [torch.randn(config.in_channels, *side, generator=g) for side in sides]
    rows, steps = make_rows(network, len(latents)), [k % len(TIMES) for k in range(len(latents))]
    alone = [
        predict(network, [row], [x], [step])[0] for row, x, step in zip(rows, latents, steps, strict=True)
    ]
    assert len({x.numpy().tobytes() for x in alone}) == len(alone)
    for first, last in ((0, 2), (1, 4), (0, 7), (3, 6)):
        chosen = slice(first, last)
        together = predict(network, rows[chosen], latents[chosen], steps[chosen])
        assert all(map(torch.equal, together, alone[chosen])), (first, last)


@torch.inference_mode()
def test_on_a_gpu_the_rows_of_a_shape_are_one_evaluation() -> None:
    """There a batch is faster, and the service says that bits may differ. Here: equal to rounding."""
    plain = ClassDiT(CONFIGS[0]).eval()
    randomise(plain)
    row_by_row, by_shape = PerShapeNetwork(plain, True), PerShapeNetwork(plain, False)
    latents = [torch.randn(4, SIDE, SIDE, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    rows = make_rows(by_shape, 3)
    [evaluations] = by_shape.collate(rows, [(SIDE, SIDE)] * 3)
    assert len(evaluations) == 1
    expected = predict(row_by_row, rows, latents, [0, 1, 2])
    for output, reference in zip(predict(by_shape, rows, latents, [0, 1, 2]), expected, strict=True):
        torch.testing.assert_close(output, reference, rtol=1e-3, atol=1e-4)
