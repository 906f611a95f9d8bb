"""Every local link in a Markdown file leads to a file, and to a heading of it where it names one."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("deploy", "docs", "loadtests", "models", "pipeline", "service", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
REMOTE = ("http://", "https://", "mailto:")


def text_of(page: Path) -> str:
    """A page without its code, in which brackets are no links."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "``", text)


def links(text: str) -> list[str]:
    return [link for link in re.findall(r"\]\(\s*([^)\s]+)[^)]*\)", text) if not link.startswith(REMOTE)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings: a second heading of the same words gets -1."""
    source = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    seen: Counter[str] = Counter()
    result = set()
    for heading in re.findall(r"^#+ +(.*?) *#*$", source, re.MULTILINE):
        words = re.sub(r"\]\([^)]*\)", "]", heading)  # a link's text counts, its target does not
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        result.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return result


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    result = []
    for link in links(text_of(page)):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        is_missing = not target.exists() or not target.is_relative_to(ROOT)
        if is_missing or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            result.append(link)
    return result


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_docs_links.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# A `code` heading, twice\n\n# A code heading twice\n\n[a](other.md) [b](#a-code-heading-twice-1)\n"
    )
    assert broken(page) == ["other.md"]
    page.write_text("# One\n\n[a](#two) `[b](#three)` [c](page.md#one) [d](https://x.org#y) [e](../up.md)\n")
    assert broken(page) == ["#two", "../up.md"]
