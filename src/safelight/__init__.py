"""Safelight: text-to-image serving with latent diffusion transformers.

    import safelight

    with safelight.Pipeline("emoji-128") as pipeline:
        images = pipeline.generate("a red apple", seed=1)
        images[0].save("apple.png")

The names below are imported when they are first used, so that `import safelight` alone loads no library.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safelight.service.python.pipeline import (
        GeneratedImage,
        GeneratedImages,
        Pipeline,
        RequestOptions,
        SafelightError,
    )

__all__ = ["GeneratedImage", "GeneratedImages", "Pipeline", "RequestOptions", "SafelightError"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'safelight' has no attribute {name!r}")
    from safelight.service.python import pipeline

    return getattr(pipeline, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
