"""The page on a service that asks for API keys: the key is entered, kept in the tab, and sent."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, expect

from safelight.service.http.gateway import build_gateway
from safelight.service.served_model import find_served_model
from tests.page.service import SETTINGS, SIZES, Service
from tests.service.http.keyed import Keys, make_keys, make_settings
from tests.service.http_server import served
from tests.service.inprocess_backend import InProcessBackend


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return make_keys(tmp_path)


@pytest.fixture
def url(keys: Keys, tmp_path: Path, service: Service) -> Iterator[str]:
    """A service with keys over the stages of the other one."""
    model = replace(find_served_model(SETTINGS), sizes=SIZES)
    names = ("model", "served_name", "default_steps", "max_pictures", "denoise_threads", "peak_tflops")
    settings = make_settings(tmp_path, **{name: getattr(SETTINGS, name) for name in names})
    with served(build_gateway(InProcessBackend(service.pipeline), model, settings)) as url:
        yield url


def test_a_key_is_entered_kept_in_the_tab_and_sent(browser: BrowserContext, url: str, keys: Keys) -> None:
    page = browser.new_page()
    page.goto(url)
    error = page.locator("#error")
    expect(error).to_contain_text("This service needs an API key")
    expect(error).to_contain_text("Enter one under Key, at the top.")
    page.locator("#key-panel summary").click()
    page.fill("#key", keys.secrets["revoked"])
    page.get_by_role("button", name="Try again").click()
    expect(error).to_contain_text("The API key was revoked.")
    page.fill("#key", keys.secrets["alice"])
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#service")).to_contain_text("emoji-128")
    page.fill("#prompt", "an apple")
    page.locator("#draw").click()
    expect(page.locator("#status")).to_contain_text("The image took")
    assert page.evaluate("Object.values(sessionStorage)") == [keys.secrets["alice"]]
    assert page.evaluate("Object.keys(localStorage)") == [] and page.evaluate("document.cookie") == ""
    page.reload()
    expect(page.locator("#service")).to_contain_text("emoji-128")
    page.close()
