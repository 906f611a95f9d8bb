"""Compiled blocks: the same numbers, and one compilation for all batches. No code is generated here."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from safelight.models.denoisers import pack
from safelight.models.families.published_shapes import find_shape
from safelight.models.networks.interface import PackedNetwork
from safelight.models.packed import compiled
from safelight.models.packed.int8 import QuantizationUnavailable
from safelight.pipeline.assembly.random_weights import random_network, random_text

CPU = torch.device("cpu")
# Latents of the rows of each batch: alone, several, of several sizes, and more tokens than before.
BATCHES: Sequence[Sequence[tuple[int, int]]] = (
    [(8, 8), (8, 8)],
    [(8, 8)],
    [(8, 8)] * 3 + [(4, 12)] * 2,
    [(12, 12)] * 5,
    [(16, 8), (4, 4), (8, 4)],
)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Compile by a back end that only counts graphs."""
    compiled_graphs: list[str] = []

    def count(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        compiled_graphs.append(str(graph.graph))
        return graph.forward

    monkeypatch.setattr(compiled, "BACKEND", count)
    torch._dynamo.reset()
    return compiled_graphs


def predict(network: PackedNetwork, name: str, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """The predictions for rows of `shapes`, with texts that alternate."""
    family, published = find_shape(name)
    texts = [random_text(family, published, seed) for seed in (1, 2)]
    times = network.prepare_times(torch.tensor([900.0, 500.0]), (64, 64))
    rows = []
    for index in range(len(shapes)):
        text = texts[index % 2]
        length = len(text.mask) if index % 2 else min(20, len(text.mask))
        rows.append(
            network.prepare_row(
                network.prepare_text(text.states[:length], text.mask[:length], text.pooled), times
            )
        )
    groups = [shape for index, shape in enumerate(shapes) if index == 0 or shape != shapes[index - 1]]
    generator = torch.Generator().manual_seed(3)
    latents = [
        torch.randn(shapes.count(shape), network.config.in_channels, *shape, generator=generator)
        for shape in groups
    ]
    return network.predict(
        latents, network.collate(rows, shapes), [index % 2 for index in range(len(shapes))]
    )


# Three steps of a block; in the last block of an MMDiT the text's stream has no layer after attention.
@pytest.mark.parametrize(
    ("name", "limit"),
    [("tiny-pixart-alpha", 3), ("tiny-sd3-medium", 4), ("tiny-sd3.5-medium", 4), ("tiny-dit", 2)],
)
@torch.inference_mode()
def test_all_batches_share_their_graphs(graphs: list[str], name: str, limit: int) -> None:
    family, published = find_shape(name)
    eager, fast = (
        pack(random_network(family, published, CPU, torch.float32), is_compiled=is_compiled)
        for is_compiled in (False, True)
    )
    assert (eager.is_compiled, fast.is_compiled) == (False, True)
    for shapes in BATCHES:
        expected, actual = (predict(network, name, shapes) for network in (eager, fast))
        for one, other in zip(expected, actual, strict=True):
            assert torch.allclose(one, other, atol=2e-5), (shapes, (one - other).abs().max())
    assert 0 < len(graphs) <= limit


def test_compiled_blocks_have_no_int8() -> None:
    family, published = find_shape("tiny")
    with pytest.raises(QuantizationUnavailable, match="compiled blocks need quantization none"):
        pack(random_network(family, published, CPU, torch.float32), "int8", is_compiled=True)
