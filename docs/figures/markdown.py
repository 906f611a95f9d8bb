"""Tables in Markdown, and the blocks of a page that are generated."""

import re
from collections.abc import Iterable, Sequence

BLOCK = r"<!-- generated: {name} -->\n(.*?)<!-- end -->"


def table(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table; a cell that is None is empty."""
    lines = [_row(columns), "|" + "---|" * len(columns), *map(_row, rows)]
    return "\n".join(lines)


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join('' if cell is None else str(cell) for cell in cells)} |"


def fill(text: str, name: str, block: str) -> str:
    """`text` with `block` between the markers of `name`.

    Raises:
        ValueError: the text has no such block, or several.
    """
    blocks = list(re.finditer(BLOCK.format(name=re.escape(name)), text, re.DOTALL))
    if len(blocks) != 1:
        raise ValueError(f"{len(blocks)} blocks {name!r}, where one is expected")
    start, end = blocks[0].span(1)
    return f"{text[:start]}\n{block}\n\n{text[end:]}"


def block_names(text: str) -> list[str]:
    """The names of all blocks of a page."""
    return re.findall(r"<!-- generated: (.*?) -->", text)


def without_blocks(text: str) -> str:
    """What is written by hand."""
    return re.sub(BLOCK.format(name=".*?"), "", text, flags=re.DOTALL)
