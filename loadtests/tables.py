"""Tables of text cells, as aligned plain text, Markdown or HTML."""

import html
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text cells under headings. Cells may hold `**bold**` text."""

    title: str  # may be empty
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def as_text(self) -> str:
        """Aligned columns, two spaces apart."""
        lines = [[_plain(cell) for cell in line] for line in (self.headings, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def as_markdown(self) -> str:
        lines = [f"## {self.title}", ""] if self.title else []
        lines += [f"| {' | '.join(self.headings)} |", "|" + "---|" * len(self.headings)]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join(lines) + "\n"

    def as_html(self) -> str:
        heading = f"<h2>{html.escape(self.title)}</h2>\n" if self.title else ""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.headings)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(_plain(cell))}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        return f"{heading}<table><tr>{head}</tr>{rows}</table>"


def _plain(cell: str) -> str:
    return cell.replace("**", "")
