"""Which pages and plots are generated, and from what."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from docs import solver_plot, solver_tables
from docs.figures import bench_plot, capacity, curves_plot, models, performance, settings
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
    """A page whose generator takes the old text and returns the new one."""

    path: str
    page: Callable[[str], str]

    def render(self, text: str, runs: Sequence[Run]) -> str:
        """The page's text as it should be; its generator knows its own data."""
        return self.page(text)


PAGES: tuple[Page | WholePage, ...] = (
    Page("README.md", performance.readme_block),
    Page("docs/performance.md", performance.blocks),
    Page("docs/capacity.md", capacity.blocks),
    Page("docs/models.md", models.blocks),
    WholePage("docs/solvers.md", lambda text: solver_tables.fill_page(text, solver_tables.read_data())),
    WholePage("docs/settings.md", lambda text: settings.page()),
)


@dataclass(frozen=True)
class Plot:
    """A plot.

    Attributes:
        key: name of the text in the PNG file that holds the digest of what it shows.
        digest: of what it should show.
        draw: draws it.
    """

    key: str
    digest: Callable[[Sequence[Run]], str]
    draw: Callable[[Path, Sequence[Run]], None]


PLOTS = {
    "docs/bench.png": Plot(
        bench_plot.DIGEST,
        lambda runs: bench_plot.digest(bench_plot.content(runs)),
        lambda png, runs: bench_plot.draw(bench_plot.content(runs), png),
    ),
    "docs/solvers.png": Plot(
        solver_plot.DIGEST_KEY,
        lambda runs: solver_plot.digest(),
        lambda png, runs: solver_plot.draw(solver_tables.read_data()),
    ),
    "docs/emoji-128-curves.png": Plot(
        curves_plot.DIGEST,
        lambda runs: curves_plot.digest(curves_plot.points()),
        lambda png, runs: curves_plot.draw_plot(curves_plot.points(), png),
    ),
}


def stale(root: Path, runs: Sequence[Run]) -> dict[str, str]:
    """The pages that differ from their data, by path, with the text that they should have."""
    texts = {page.path: (root / page.path).read_text(encoding="utf-8") for page in PAGES}
    rendered = {page.path: page.render(texts[page.path], runs) for page in PAGES}
    return {path: text for path, text in rendered.items() if text != texts[path]}


def stale_plots(root: Path, runs: Sequence[Run]) -> dict[str, Callable[[], None]]:
    """The plots that show other figures than their data, by path, with what draws them again."""
    return {
        path: partial(plot.draw, root / path, runs)
        for path, plot in PLOTS.items()
        if png_text(root / path).get(plot.key) != plot.digest(runs)
    }


def png_text(png: Path) -> Mapping[str, object]:
    """The texts that a PNG file carries; empty without the file."""
    if not png.exists():
        return {}
    with Image.open(png) as image:
        return {str(name): text for name, text in image.info.items()}
