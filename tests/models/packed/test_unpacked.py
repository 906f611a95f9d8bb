"""Rows of different shapes on a network that takes one shape at a time."""

from collections.abc import Sequence
from typing import Any

import torch

from safelight.models.packed.unpacked import PerShapeNetwork


class RecordingNetwork:
    """A plain network whose prediction is its latents; keeps what it was called with."""

    config = "its configuration"

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, ...], list[str], list[int]]] = []

    def prepare_row(self, states: str, mask: str, pooled: str, times: str) -> str:
        return " ".join((states, mask, pooled, times))

    def collate(self, rows: Sequence[str]) -> list[str]:
        return list(rows)

    def predict(self, x: torch.Tensor, rows: list[str], steps: list[int]) -> torch.Tensor:
        self.calls.append((tuple(x.shape), rows, steps))
        return x


def test_each_shape_is_evaluated_with_its_own_rows_and_steps() -> None:
    network: Any = RecordingNetwork()
    packed = PerShapeNetwork(network)
    collated = packed.collate(["a", "b", "c"], [(8, 8), (8, 8), (8, 12)])
    latents = [torch.zeros(2, 4, 8, 8), torch.ones(1, 4, 8, 12)]
    predictions = packed.predict(latents, collated, [3, 0, 7])
    assert network.calls == [((2, 4, 8, 8), ["a", "b"], [3, 0]), ((1, 4, 8, 12), ["c"], [7])]
    assert all(torch.equal(out, x) for out, x in zip(predictions, latents, strict=True))


def test_a_text_is_kept_as_it_is_until_its_row_is_made() -> None:
    packed = PerShapeNetwork(RecordingNetwork())  # type: ignore[arg-type]
    states, mask = torch.zeros(3, 2), torch.ones(3, dtype=torch.bool)
    assert packed.prepare_text(states, mask, None).num_bytes == 3 * 2 * 4 + 3
    text: Any = packed.prepare_text("states", "mask", "pooled")  # type: ignore[arg-type]
    assert packed.prepare_row(text, "times") == "states mask pooled times"
    assert packed.config == "its configuration"
