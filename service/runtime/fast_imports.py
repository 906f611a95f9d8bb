"""Faster imports of large libraries."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_frozen_imports() -> Iterator[None]:
    """Import without garbage collection, and exempt every object alive at the end from later collections.

    Modules live until the process ends, so collecting them is wasted work: a third of the time that importing
    torch and open_clip takes.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
