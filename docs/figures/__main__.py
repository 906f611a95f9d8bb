"""Redraw every table and plot of the documents: `python -m docs.figures [--check]`, or `make docs`."""

import argparse
import sys
from pathlib import Path

from docs.figures import bench_plot
from docs.figures.data import ROOT, load_runs
from docs.figures.pages import is_plot_stale, stale


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Write what differs from its data; the exit status is 1 if `--check` finds anything."""
    parser = argparse.ArgumentParser(prog="python -m docs.figures", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page differs")
    is_check = parser.parse_args(arguments).check
    runs = load_runs(root / "docs" / "data")
    pages, is_stale = stale(root, runs), is_plot_stale(root, runs)
    names = [*pages, *(["docs/bench.png"] if is_stale else [])]
    if is_check:
        for name in names:
            print(f"{name} differs from its data; run make docs")
        return int(bool(names))
    for path, text in pages.items():
        (root / path).write_text(text, encoding="utf-8")
    if is_stale:
        bench_plot.draw(bench_plot.content(runs), root / "docs" / "bench.png")
    print("\n".join(f"wrote {name}" for name in names) or "nothing differs from its data")
    return 0


if __name__ == "__main__":
    sys.exit(main())
