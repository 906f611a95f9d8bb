"""docs/settings.md is generated from the settings model (tests/test_docs_figures.py compares it)."""

from docs.figures.settings import page
from safelight.service.settings import Settings


def test_every_setting_has_a_row() -> None:
    rows = [line for line in page().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(Settings.model_fields)


def test_every_setting_is_described_in_sentences() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description and field.description.endswith("."), name
