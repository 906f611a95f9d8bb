"""Redraw every table and plot of the documents: `python -m docs.figures [--check]`, or `make docs`."""

import argparse
import sys
from pathlib import Path

from docs.figures.data import ROOT, load_runs
from docs.figures.pages import stale, stale_plots


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Write what differs from its data; the exit status is 1 if `--check` finds anything."""
    parser = argparse.ArgumentParser(prog="python -m docs.figures", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page differs")
    is_check = parser.parse_args(arguments).check
    runs = load_runs(root / "docs" / "data")
    pages, plots = stale(root, runs), stale_plots(root, runs)
    names = [*pages, *plots]
    if is_check:
        for name in names:
            print(f"{name} differs from its data; run make docs")
        return int(bool(names))
    for path, text in pages.items():
        (root / path).write_text(text, encoding="utf-8")
    for draw in plots.values():
        draw()
    print("\n".join(f"wrote {name}" for name in names) or "nothing differs from its data")
    return 0


if __name__ == "__main__":
    sys.exit(main())
