"""One browser and one gateway for all tests of the page, and a fresh tab for each.

Whatever a test does, its tab may send no request to another origin, report no violation of the content
security policy and throw no error.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from safelight.service.http.gateway import build_gateway
from safelight.service.settings import Settings
from tests.page.stub import EMOJI_MODEL, ImageBackend, StreamStub
from tests.service.http_server import served

CHROMIUM = "/usr/bin/chromium"
WATCH = (
    "addEventListener('securitypolicyviolation', (event) => console.error(`CSP ${event.violatedDirective}`))"
)


@dataclass
class Service:
    """The gateway that the page talks to."""

    url: str
    backend: ImageBackend
    stub: StreamStub


@dataclass
class Findings:
    """What a tab did that it may not do."""

    origin: str
    lines: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.lines.append(str(error)))
        page.on("console", self._read)
        page.on("request", lambda request: self._check(request.url))

    def _read(self, message: ConsoleMessage) -> None:
        is_status = message.text.startswith("Failed to load resource")  # tests provoke errors of requests
        if message.type in ("error", "warning") and not is_status:
            self.lines.append(message.text)

    def _check(self, url: str) -> None:
        if not url.removeprefix("blob:").startswith(f"{self.origin}/") and not url.startswith("data:"):
            self.lines.append(f"request to {url}")


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def server() -> Iterator[Service]:
    backend, stub = ImageBackend(), StreamStub()
    app = build_gateway(backend, EMOJI_MODEL, Settings())
    stub.wrap(app)
    with served(app) as url:
        yield Service(url, backend, stub)


@pytest.fixture
def service(server: Service) -> Service:
    """The gateway, as if it had just started."""
    server.backend.errors.clear()
    server.stub.reset()
    return server


@pytest.fixture
def findings(service: Service) -> Findings:
    return Findings(service.url)


@pytest.fixture
def page(browser: Browser, service: Service, findings: Findings) -> Iterator[Page]:
    """A tab with the page, ready to draw."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    context.set_default_timeout(20_000)
    context.add_init_script(WATCH)
    page = context.new_page()
    findings.watch(page)
    page.goto(service.url)
    page.locator("#guide").wait_for()
    yield page
    context.close()
    assert findings.lines == []
