"""The code that the page writes for a request draws the same image."""

import io
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.page.actions import draw, pixels
from tests.page.conftest import Service

PROMPT = 'it\'s a "red" $(apple) \\n `x` 🍎\nand a pear'
READ_CLIPBOARD = "navigator.clipboard.readText()"


def image_in(folder: Path) -> tuple[tuple[int, int], bytes]:
    """The size and the pixels of the one file that a program has written to `folder`."""
    (path,) = folder.glob("*.png")
    assert path.name == "image-0.png"
    with Image.open(path) as image:
        return image.size, image.convert("RGBA").tobytes()


def copied(page: Page, button: str) -> str:
    page.get_by_role("button", name=button).click()
    expect(page.locator("#status")).to_contain_text("is in the clipboard.")
    text = page.evaluate(READ_CLIPBOARD)
    assert isinstance(text, str)
    return text


def test_the_copied_curl_command_draws_the_same_image(page: Page, service: Service, tmp_path: Path) -> None:
    draw(page, PROMPT)
    command = copied(page, "Copy as curl")
    process = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    assert image_in(tmp_path) == pixels(page)
    assert service.stub.requests[-1]["prompt"] == PROMPT


def test_the_copied_program_draws_the_same_image(
    page: Page, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.locator("#settings summary").click()
    page.fill("#num_inference_steps", "3")
    draw(page, PROMPT)
    program = copied(page, "Copy as Python")
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "copied", "exec"), {})
    assert image_in(tmp_path) == pixels(page)
    sent = service.stub.requests[-1]
    assert (sent["prompt"], sent["num_inference_steps"]) == (PROMPT, 3)


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


def test_the_copied_edit_sends_the_saved_files(page: Page, service: Service, tmp_path: Path) -> None:
    draw(page, "a pear")
    page.get_by_role("button", name="Edit").click()
    page.locator("#mask").press(" ")
    page.locator("#code-panel summary").click()
    for name in ("image", "mask"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Save {name}.png").click()
        download.value.save_as(tmp_path / f"{name}.png")
    page.fill("#prompt", "a 'worm'")
    expect(page.locator("#code")).to_contain_text("worm")
    command = page.locator("#code").text_content() or ""
    subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, env=os.environ)
    assert service.stub.requests[-1] == {"model": "emoji-128", "prompt": "a 'worm'"}
    sent = {name: Image.open(io.BytesIO(file)).size for name, file in service.stub.files.items()}
    assert sent == {"image": (128, 128), "mask": (128, 128)}
