"""The text encoder of a checkpoint."""

from models.text import ClipTextTower
from pipeline.build.device import set_threads
from pipeline.encoder import TextEncoder
from pipeline.params import ModelInfo


def build_text_encoder(model: ModelInfo, *, num_threads: int | None = None) -> TextEncoder:
    """The text tower of `model`, float32."""
    set_threads(num_threads)
    return TextEncoder(ClipTextTower(model.path / "text_encoder"))
