"""One browser, one profile and one service for all tests of the page, and a fresh tab for each.

Whatever a test does, its tab may send no request to another origin, report no violation of the content
security policy and throw no error. What a tab keeps is its own: the page stores nothing in the profile.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.page.service import Service, run_service

CHROMIUM = "/usr/bin/chromium"
WATCH = (
    "addEventListener('securitypolicyviolation', (event) => console.error(`CSP ${event.violatedDirective}`))"
)
TIMEOUT_MS = 60_000  # of what a test waits for; the machine may be loaded


@dataclass
class Traffic:
    """What a tab sent, and what it did that it may not do."""

    origin: str
    sent: list[dict[str, Any]] = field(default_factory=list)  # the JSON bodies of its requests
    findings: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.findings.append(str(error)))
        page.on("console", self._read)
        page.on("request", self._check)

    def _read(self, message: ConsoleMessage) -> None:
        is_status = message.text.startswith("Failed to load resource")  # tests provoke errors of requests
        if message.type in ("error", "warning") and not is_status:
            self.findings.append(message.text)

    def _check(self, request: Request) -> None:
        url = request.url
        if not url.removeprefix("blob:").startswith(f"{self.origin}/") and not url.startswith("data:"):
            self.findings.append(f"request to {url}")
        if request.headers.get("content-type") == "application/json":
            self.sent.append(request.post_data_json or {})


@pytest.fixture(scope="package")
def browser() -> Iterator[BrowserContext]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(
            viewport={"width": 1280, "height": 900},
            permissions=["clipboard-read", "clipboard-write"],
            reduced_motion="reduce",  # animations would take the processor from the service
        )
        context.set_default_timeout(TIMEOUT_MS)
        expect.set_options(timeout=TIMEOUT_MS)
        context.add_init_script(WATCH)
        yield context
        browser.close()


@pytest.fixture(scope="package")
def server() -> Iterator[Service]:
    with run_service() as service:
        yield service


@pytest.fixture
def service(server: Service) -> Service:
    """The service, as if it had just started."""
    server.reset()
    return server


@pytest.fixture
def traffic(service: Service) -> Traffic:
    return Traffic(service.url)


@pytest.fixture
def page(browser: BrowserContext, service: Service, traffic: Traffic) -> Iterator[Page]:
    """A tab with the page, ready to draw."""
    page = browser.new_page()
    traffic.watch(page)
    page.goto(service.url)
    page.locator("#guide").wait_for()
    yield page
    page.close()
    assert traffic.findings == []
