"""The generated blocks of docs/models.md: sizes of published checkpoints, from empty networks."""

from collections.abc import Sequence

from docs.figures.data import Run
from safelight.models.inspection.sizes import parts_table, stages_table


def blocks(runs: Sequence[Run]) -> dict[str, str]:
    """The blocks of docs/models.md; no run is needed."""
    return {"parts": parts_table(), "stages": stages_table()}
