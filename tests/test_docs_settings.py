"""docs/settings.md is generated from the settings model."""

import importlib.util
import sys
from pathlib import Path

import pytest

from safelight.service.settings import Settings

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_page_equals_the_settings_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script extends it
    spec = importlib.util.spec_from_file_location("settings_page", DOCS / "settings_page.py")
    assert spec is not None and spec.loader is not None
    settings_page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(settings_page)
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == settings_page.page(), (
        "run python docs/settings_page.py"
    )


def test_every_setting_is_described_in_sentences() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description and field.description.endswith("."), name
