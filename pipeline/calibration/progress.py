"""Progress callbacks: how a long measurement reports what it is doing."""

from collections.abc import Callable

ProgressCallback = Callable[[str], None]  # called with a short text: what is being measured


def count_progress(progress: ProgressCallback, label: str, total: int) -> Callable[[int], None]:
    """A callback for the number of finished items, which reports "`label`: 3 of `total`"."""

    def report(done: int) -> None:
        progress(f"{label}: {done} of {total}")

    return report
