"""Whether the text parts of a checkpoint fit its transformer, from the configs alone: no tower's library is imported here."""

from pathlib import Path
from typing import Any

from safelight.models.checkpoints.families import Family
from safelight.models.checkpoints.json_files import CLIP_CONFIG, CheckpointError, read_json

POOLED_WIDTH, PROJECTION_WIDTH = 2048, 512  # where a transformer's config, or a CLIP's, does not say


def check_fit(family: Family, folder: Path) -> None:
    """Raise `CheckpointError` if the transformer reads other text than the text parts of `folder` give."""
    if family.has_classes:
        return
    transformer = read_json(folder / "transformer" / "config.json")
    parts = [
        part.folder
        for part in family.parts
        if part.kind in ("open_clip", "t5", "clip") and not part.is_optional
    ]
    if family.parts[0].kind == "clip":
        what, wanted = "pooled text", transformer.get("pooled_projection_dim", POOLED_WIDTH)
        found = sum(_config(folder / part).get("projection_dim", PROJECTION_WIDTH) for part in parts)
    else:
        what, wanted = "text", transformer.get("caption_channels")
        found = _read_width(folder / parts[0])
    if found != wanted:
        raise CheckpointError(
            f"{folder}: the transformer reads {what} of width {wanted}, the {' and '.join(parts)} has {found}"
        )


def _read_width(part: Path) -> Any:
    if (part / CLIP_CONFIG).exists():
        return read_json(part / CLIP_CONFIG)["model_cfg"]["text_cfg"]["width"]
    return _config(part).get("d_model")


def _config(part: Path) -> dict[str, Any]:
    return read_json(part / "config.json")
