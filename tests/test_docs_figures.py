"""Every table and plot of the documents is what `make docs` draws from data, with its machine and commit."""

import json
import re
import shutil
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from docs.figures import __main__ as command
from docs.figures import pages
from docs.figures.data import DATA, ROOT, Run, load_runs
from docs.figures.markdown import fill, without_blocks
from docs.figures.pages import PAGES, PLOTS, Page, png_text
from docs.figures.performance import HEADINGS, MACHINES, blocks, newest_bench, readme_block
from loadtests import __main__ as loadtests

RUNS = load_runs()
MEASURED = [run for run in RUNS if run.folder in MACHINES]
# A figure with a unit; those that are measured stand in generated blocks only.
FIGURE = re.compile(r"\d[\d,.]* ?(?:%|ms|µs|GFLOPS|images/h|images an hour|dB|s)(?!\w)")


# tests/models/inspection/test_sizes.py compares docs/models.md; its tables take long to compute.
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.path != "docs/models.md"], ids=lambda page: page.path
)
def test_a_page_is_what_its_data_say(page: Page) -> None:
    text = (ROOT / page.path).read_text(encoding="utf-8")
    assert page.render(text, RUNS) == text, "run make docs"


@pytest.mark.parametrize("path", PLOTS)
def test_a_plot_shows_its_data(path: str) -> None:
    plot = PLOTS[path]
    assert png_text(ROOT / path)[plot.key] == plot.digest(RUNS), "run make docs"


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the README, docs/performance.md, docs/bench.png and their data."""
    texts = [page for page in PAGES if page.path in ("README.md", "docs/performance.md")]
    monkeypatch.setattr(pages, "PAGES", texts)
    monkeypatch.setattr(pages, "PLOTS", {"docs/bench.png": PLOTS["docs/bench.png"]})
    (tmp_path / "docs").mkdir()
    for path in ("README.md", "docs/performance.md", "docs/bench.png"):
        shutil.copy(ROOT / path, tmp_path / path)
    shutil.copytree(DATA, tmp_path / "docs" / "data")
    return tmp_path


def test_a_changed_figure_is_found_and_drawn(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--check"], clone) == 0
    newest = newest_bench(RUNS)
    file = clone / "docs" / "data" / newest.folder / "bench.json"
    record = json.loads(file.read_text())
    record["figures"]["batch1"]["ours_s"] *= 1.5
    file.write_text(json.dumps(record))
    assert command.main(["--check"], clone) == 1
    differing = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert differing == {"README.md", "docs/performance.md", "docs/bench.png"}
    assert command.main([], clone) == 0
    assert command.main(["--check"], clone) == 0


def test_a_figure_typed_into_a_page_is_found(clone: Path) -> None:
    page = clone / "docs" / "performance.md"
    text = page.read_text()
    page.write_text(
        text.replace("| MFU, full ticks | at least 65 % |", "| MFU, full ticks | at least 60 % |", 1)
    )
    assert page.read_text() != text
    assert command.main(["--check"], clone) == 1


def test_a_block_that_nothing_generates_is_refused() -> None:
    page = Page("README.md", readme_block)
    text = (ROOT / "README.md").read_text()
    with pytest.raises(ValueError, match="nothing generates another"):
        page.render(text + "<!-- generated: another -->\n<!-- end -->\n", RUNS)
    with pytest.raises(ValueError, match="0 blocks 'bench'"):
        page.render("no block", RUNS)
    with pytest.raises(ValueError, match="2 blocks 'x'"):
        fill("<!-- generated: x -->\n<!-- end -->\n" * 2, "x", "")


@pytest.mark.parametrize("name", ["performance.md", "capacity.md"])
def test_every_table_is_generated(name: str) -> None:
    by_hand = without_blocks((ROOT / "docs" / name).read_text())
    assert [line for line in by_hand.splitlines() if line.startswith("|")] == []


def test_no_measured_figure_is_written_by_hand() -> None:
    by_hand = without_blocks((ROOT / "docs" / "performance.md").read_text())
    assert FIGURE.findall(by_hand) == []


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run.folder}/{run.name}")
def test_a_run_says_where_it_is_from(run: Run) -> None:
    assert run.record.keys() >= {"machine", "commit", "date", "command", "figures"}
    assert run.machine.keys() == {"processor", "cores", "instruction_sets", "accelerator", "gemm_gflops"}
    assert date.fromisoformat(run.record["date"]) >= date(2026, 1, 1)
    commits = re.findall(r"\b[0-9a-f]{7,}\b", f"{run.record['commit']} {run.record.get('entered_in')}")
    assert commits or run.folder == "published"
    assert not str(run.record["commit"]).endswith("+"), "measured with changes that no commit has"


@pytest.mark.parametrize("run", MEASURED, ids=lambda run: f"{run.folder}/{run.name}")
def test_a_run_is_of_the_machine_of_its_folder(run: Run) -> None:
    kinds = {"avx2": "AVX2", "amx": "AMX", "avx512-bf16": "AVX-512 bf16"}
    assert run.kind == kinds[run.folder]
    texts = json.dumps({key: value for key, value in run.record.items() if key != "machine"})
    others = [kind for folder, kind in kinds.items() if folder != run.folder]
    assert [kind for kind in (*others, "other processor", "other machine") if kind in texts] == []


def test_every_machine_has_one_section_with_all_its_runs() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    headings = [heading for heading in sections if heading in HEADINGS.values()]
    assert headings == [HEADINGS[folder] for folder in MACHINES]
    for run in MEASURED:
        if run.name not in ("forecasts", "control-plane"):
            assert f"### {run.title}\n\n{run.provenance}" in sections[HEADINGS[run.folder]]


def test_a_new_run_of_a_machine_appears_on_its_page() -> None:
    figures = next(run for run in RUNS if run.name == "bench").figures
    machine = next(run for run in RUNS if run.folder == "avx2").machine
    record: dict[str, Any] = {
        "machine": machine, "commit": "abcdef1", "date": "2099-01-01", "command": "safelight bench",
        "figures": figures,
    }  # fmt: skip
    runs: Sequence[Run] = [
        *(run for run in RUNS if (run.folder, run.name) != ("avx2", "bench")), Run("avx2", "bench", record)
    ]  # fmt: skip
    section = blocks(runs)["machines"].split("## AMX")[0]
    assert "*commit abcdef1, 2099-01-01" in section
    assert "| MFU, full ticks | at least 65 % |" in section
    assert "commit abcdef1" in readme_block(runs)["bench"]


def test_the_load_test_asks_for_the_documented_share() -> None:
    share = loadtests._parser().parse_args([]).min_share_of_bench
    (run,) = (run for run in RUNS if (run.folder, run.name) == ("amx", "http"))
    rows = run.figures["tables"][0]["rows"]
    assert ["the share of the engine alone", "46 %", f"{100 * share:.0f} %"] in rows
