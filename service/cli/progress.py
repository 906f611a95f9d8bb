"""Progress for a person at a terminal; prints nothing when stderr is not a terminal."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

ProgressCallback = Callable[[str], None]


@contextmanager
def progress(first: str) -> Iterator[ProgressCallback]:
    """A spinner on stderr beside one line of text, which the yielded function replaces."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status(first) as status:
        yield status.update


@contextmanager
def counter(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; the yielded function sets how many of `total` steps are done."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)


def note_reading(
    unknown_words: Sequence[str], prompt_syntax: Sequence[str], corrected_words: Mapping[str, str]
) -> None:
    """Say which parts of a prompt have no effect, and which were read as another word."""
    if corrected_words:
        pairs = ", ".join(f"{typed} as {read}" for typed, read in corrected_words.items())
        note(f"misspelt words were read as known ones: {pairs}")
    if unknown_words:
        note(f"words that the model does not know: {', '.join(unknown_words)}")
    if prompt_syntax:
        note(f"prompt syntax without effect: {', '.join(prompt_syntax)}")


def note(text: str) -> None:
    """Print a remark beside the result."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)
