"""The page for everyone: rules of accessibility, small screens, the keyboard, less motion."""

from collections.abc import Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from safelight.service.usage.records import RequestOutcome
from tests.page.actions import begin, draw
from tests.page.service import Service

READ_BOXES = """(share) => {
    scrollTo(0, share * document.documentElement.scrollHeight);
    const names = ['board', 'film', 'controls', 'print'];
    return Object.fromEntries(names.map((name) => {
        const { top, bottom } = document.querySelector(`.${name}:not([hidden])`).getBoundingClientRect();
        return [name, { top, bottom }];
    }));
}"""  # where parts of the page are after it was scrolled


def states(page: Page) -> Iterator[str]:
    """Brings the page into each of its states in turn; yields their names."""
    yield "empty"
    draw(page, "an ((apple)) with a name so long, and without spaces: " + "x" * 80)
    for panel in ("#settings", "#code-panel"):
        page.locator(f"{panel} > summary").click()
    yield "drawn"
    page.get_by_role("button", name="Edit").click()
    yield "painting"
    page.route("**/v1/images/edits", lambda route: route.abort())
    page.locator("#draw").click()
    expect(page.get_by_role("alert")).to_be_visible()
    page.locator("#key-panel > summary").click()
    yield "error"


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_axe_finds_nothing(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light", reduced_motion="reduce")
    axe = Axe()
    for state in states(page):
        results = axe.run(page)
        assert results.violations_count == 0, f"{state}\n{results.generate_report()}"


def test_nothing_is_wider_than_a_small_screen(page: Page) -> None:
    page.set_viewport_size({"width": 320, "height": 568})
    for state in states(page):
        widths = page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]")
        assert max(widths) <= 320, state


def test_the_image_stays_in_sight_beside_a_long_form_and_covers_nothing(page: Page) -> None:
    draw(page, "an apple")
    page.get_by_role("button", name="Edit").click()
    for panel in ("#settings", "#code-panel", "#settings"):  # the second click on it folds it again
        page.locator(f"{panel} > summary").click()
        for share in (0, 0.25, 0.5, 0.75, 1):
            boxes = page.evaluate(READ_BOXES, share)
            assert boxes["board"]["bottom"] <= boxes["film"]["top"], (panel, share)
            if boxes["controls"]["bottom"] > 900:  # the form fills the screen
                assert 0 <= boxes["print"]["top"] < 100, (panel, share)


def test_everything_works_by_keyboard(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the prompt")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type("an apple")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("and a pear")
    page.keyboard.press("Enter")
    expect(page.locator("#details")).to_be_visible()
    assert page.input_value("#prompt") == "an apple\nand a pear"
    focused = []
    for _ in range(12):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    for name in ("draw", "download", "same-seed", "variations", "edit", "copy-curl", "frame"):
        assert name in focused, focused


def test_progress_is_announced(page: Page) -> None:
    assert page.locator("#status").get_attribute("role") == "status"
    assert page.locator("#error").get_attribute("role") == "alert"
    draw(page, "an apple")
    expect(page.get_by_role("button", name="Image 1: an apple")).to_have_attribute("aria-current", "true")
    assert page.locator("#clock").get_attribute("aria-hidden") == "true"


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_moves_where_less_motion_is_preferred(page: Page, service: Service, motion: str) -> None:
    page.emulate_media(reduced_motion="reduce" if motion == "reduce" else "no-preference")
    service.gate.hold()
    begin(page, "an apple")
    expect(page.locator("#cancel")).to_be_visible()
    assert (page.evaluate("document.getAnimations().length") > 0) is (motion == "no-preference")
    page.keyboard.press("Escape")
    assert service.record().outcome is RequestOutcome.ABORTED
