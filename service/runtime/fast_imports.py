"""Faster imports of large libraries."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_frozen_imports() -> Iterator[None]:
    """Import without garbage collection, and exempt the imported objects from every later collection.

    Modules live until the process ends, so collecting them is wasted work: a fifth of the time that importing
    open_clip and diffusers takes.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
