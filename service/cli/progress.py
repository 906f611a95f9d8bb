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


@contextmanager
def counter(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, told by the yielded function how many of `total` are done."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def note(text: str) -> None:
    """A remark beside the result."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)
