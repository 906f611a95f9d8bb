"""A classifier of finished images, which the operator writes and the decoding stage calls."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from safelight.service.errors import ImageRefused, StageFailed

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger(__name__)

# Of pixels (height, width, 3) of bytes; the reason why the image may not be sent, or None.
ImageClassifier = Callable[["np.ndarray"], str | None]


class BadClassifier(ValueError):
    """An import path that leads to no classifier."""


def load_classifier(path: str) -> ImageClassifier:
    """The classifier that the callable at `path`, such as `filters.nudity:make`, returns.

    Raises:
        BadClassifier: The path leads to no callable, or what it returns is none.
    """
    module, _, name = path.partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise BadClassifier(f"image_classifier {path!r} cannot be imported: {error}") from error
    classify = make()
    if not callable(classify):
        raise BadClassifier(f"image_classifier {path!r} returned {type(classify).__name__}, not a callable")
    checked: ImageClassifier = classify
    return checked


def refusal(classify: ImageClassifier, pixels: np.ndarray) -> ImageRefused | StageFailed | None:
    """Why an image may not be sent: the classifier's refusal, or that it failed; None if it may."""
    try:
        reason = classify(pixels)
    except Exception:
        logger.exception("the image classifier failed")
        return StageFailed("The image could not be classified.")
    if reason is None:
        return None
    logger.info("an image was refused: %r", str(reason)[:200])
    return ImageRefused()
