"""What is going on, for a person at a terminal; nothing at all in a pipe."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Say = Callable[[str], None]


@contextmanager
def progress(first: str) -> Iterator[Say]:
    """A spinner on stderr beside one line of text, which the yielded function replaces."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status(first) as status:
        yield status.update


def note(text: str) -> None:
    """A remark beside the result."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)
