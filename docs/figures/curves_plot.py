"""The plot docs/emoji-128-curves.png, drawn by the recipe from the figures beside the weights."""

import json
from typing import Any

from docs.figures.data import ROOT
from safelight.models.recipes.emoji.curves import DIGEST, digest, draw_plot

__all__ = ["DIGEST", "digest", "draw_plot", "points"]
CURVES = ROOT / "models" / "weights" / "emoji-128" / "curves.json"


def points() -> dict[str, Any]:
    """The points of every curve."""
    curves: dict[str, Any] = json.loads(CURVES.read_text())["points"]
    return curves
