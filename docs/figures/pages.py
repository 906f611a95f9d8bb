"""Which pages and plots are generated, and from what."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from docs.figures import bench_plot, capacity, models, performance, settings, solvers
from docs.figures.data import Run
from docs.figures.markdown import block_names, fill

Blocks = Callable[[Sequence[Run]], Mapping[str, str]]


@dataclass(frozen=True)
class Page:
    """A page, by its path in the repository, and the generator of its blocks."""

    path: str
    blocks: Blocks

    def render(self, text: str, runs: Sequence[Run]) -> str:
        """The page's text with its blocks written anew.

        Raises:
            ValueError: a block has no generator, or the page lacks a block.
        """
        blocks = self.blocks(runs)
        if unknown := set(block_names(text)) - set(blocks):
            raise ValueError(f"{self.path}: nothing generates {', '.join(sorted(unknown))}")
        for name, block in blocks.items():
            text = fill(text, name, block)
        return text


@dataclass(frozen=True)
class WholePage:
    """A page that is generated as a whole."""

    path: str
    page: Callable[[], str]

    def render(self, text: str, runs: Sequence[Run]) -> str:
        """The page's text, whatever it was."""
        return self.page()


PAGES: tuple[Page | WholePage, ...] = (
    Page("README.md", performance.readme_block),
    Page("docs/performance.md", performance.blocks),
    Page("docs/capacity.md", capacity.blocks),
    Page("docs/models.md", models.blocks),
    Page("docs/solvers.md", solvers.blocks),
    WholePage("docs/settings.md", settings.page),
)


def stale(root: Path, runs: Sequence[Run]) -> dict[str, str]:
    """The pages that differ from their data, by path, with the text that they should have."""
    texts = {page.path: (root / page.path).read_text(encoding="utf-8") for page in PAGES}
    rendered = {page.path: page.render(texts[page.path], runs) for page in PAGES}
    return {path: text for path, text in rendered.items() if text != texts[path]}


def is_plot_stale(root: Path, runs: Sequence[Run]) -> bool:
    """Whether docs/bench.png shows other figures than those of the data."""
    png = root / "docs" / "bench.png"
    return bench_plot.digest_in(png) != bench_plot.digest(bench_plot.content(runs))
