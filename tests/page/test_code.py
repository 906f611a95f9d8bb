"""The code that the page writes for a request draws the same image."""

import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.page.actions import draw, pixels, wait_until_done
from tests.page.service import Pixels, Service, read_pixels

PROMPT = 'it\'s a "red" $(apple) \\n `x` 🍎\nand a pear'
READ_CLIPBOARD = "navigator.clipboard.readText()"


def run(command: str, folder: Path) -> Pixels:
    """Run a copied command in `folder`; returns the image that it writes."""
    process = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    return read_pixels((folder / "image-0.png").read_bytes())


def copied(page: Page, button: str) -> str:
    page.get_by_role("button", name=button).click()
    expect(page.locator("#status")).to_contain_text("is in the clipboard.")
    text = page.evaluate(READ_CLIPBOARD)
    assert isinstance(text, str)
    return text


def test_the_copied_curl_command_draws_the_same_image(page: Page, tmp_path: Path) -> None:
    draw(page, PROMPT)
    assert run(copied(page, "Copy as curl"), tmp_path) == pixels(page)
    assert [path.name for path in tmp_path.iterdir()] == ["image-0.png"]


def test_the_copied_program_draws_the_same_image(
    page: Page, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.locator("#settings summary").click()
    page.fill("#num_inference_steps", "3")
    draw(page, PROMPT)
    assert service.record().num_images == 1
    program = copied(page, "Copy as Python")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "copied", "exec"), {})
    assert read_pixels((tmp_path / "image-0.png").read_bytes()) == pixels(page)
    (usage,) = service.record().image_usages
    assert usage.denoise.nfe == 3  # the library's request has the fields that it does not know


def test_the_code_of_the_form_follows_it(page: Page) -> None:
    page.locator("#code-panel summary").click()
    page.fill("#prompt", "a pear")
    code = page.locator("#code")
    expect(code).to_contain_text('"prompt":"a pear"')
    page.get_by_text("Python", exact=True).click()
    expect(code).to_contain_text('prompt="a pear",')
    page.locator("#key-panel summary").click()
    page.fill("#key", "secret")
    expect(code).to_contain_text('api_key=os.environ["SAFELIGHT_KEY"]')
    assert "secret" not in code.inner_text()
    assert copied(page, "Copy") == code.text_content()


def test_code_is_copied_where_browsers_have_no_clipboard(page: Page) -> None:
    draw(page, "a pear")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined, configurable: true })")
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.locator("#status")).to_have_text("The curl command is in the clipboard.")
    page.evaluate("delete navigator.clipboard")
    assert '"prompt":"a pear"' in page.evaluate(READ_CLIPBOARD)


def test_the_copied_edit_draws_the_same_image(page: Page, service: Service, tmp_path: Path) -> None:
    draw(page, "a pear")
    page.get_by_role("button", name="Edit").click()
    page.locator("#mask").press(" ")
    page.locator("#code-panel summary").click()
    page.locator("#settings summary").click()
    page.fill("#seed", "5")
    for name in ("image", "mask"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Save {name}.png").click()
        download.value.save_as(tmp_path / f"{name}.png")
    page.fill("#prompt", "a 'worm'")
    expect(page.locator("#code")).to_contain_text("worm")
    command = page.locator("#code").text_content() or ""
    page.locator("#draw").click()
    expect(page.locator("#caption")).to_have_text("a 'worm'")
    wait_until_done(page)
    assert run(command, tmp_path) == pixels(page)
    by_page, by_command = service.uploads
    assert by_page == by_command
    assert by_page.mask is not None
