"""Sizes computed from empty networks equal the published ones, and docs/models.md shows them."""

from pathlib import Path

import pytest
import torch

from safelight.models.families.registry import list_families, list_published_parts
from safelight.models.inspection.expected_tensors import NETWORK_FILES
from safelight.models.inspection.sizes import part_size, parts_table, peak_bytes, stages_table

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "models.md"
PUBLISHED_PARAMETERS = {
    "PixArt-Sigma XL/2": 0.61e9,
    "SD3-medium": 2.03e9,
    "SD3.5-large": 8.1e9,
    "DiT-XL/2": 0.675e9,
}
# The float32 weights of the transformer in PixArt-alpha/PixArt-Sigma-XL-2-1024-MS.
SIGMA_FILE_BYTES = 2_443_492_488


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_parameters_are_as_published(name: str) -> None:
    size = part_size(NETWORK_FILES, list_published_parts()[name].config)
    assert size.num_parameters == pytest.approx(PUBLISHED_PARAMETERS[name], rel=0.01)


def test_the_published_file_has_the_size_of_its_numbers_and_a_header() -> None:
    size = part_size(NETWORK_FILES, list_published_parts()["PixArt-Sigma XL/2"].config)
    assert 0 < SIGMA_FILE_BYTES - 4 * size.num_stored < 100_000


def test_the_documentation_has_these_numbers() -> None:
    text = DOCUMENTATION.read_text()
    assert parts_table() in text
    assert stages_table() in text


def test_the_documentation_has_every_family() -> None:
    lines = DOCUMENTATION.read_text().split("## Getting a folder")[0].splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| `")}
    for family in list_families():
        line = rows[f"`{family.name}`"]
        assert f"{family.num_steps}, {family.guidance_scale:g}, `{family.solver}`" in line
        assert family.licence in line
        assert all(f"`{repository}`" in line for repository in family.origin)


def test_the_peak_counts_tensors_that_live_at_one_time() -> None:
    x = torch.empty(1000, device="meta")

    def compute() -> torch.Tensor:
        y = x + 1  # 4 kB
        z = y.double()  # 8 kB more: the peak
        del y
        return z[:500].neg()  # the view takes nothing, its negative 4 kB

    assert peak_bytes(compute) == 12_000
