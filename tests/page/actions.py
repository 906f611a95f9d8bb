"""What the tests of the page do and read, in a word each."""

from playwright.sync_api import Page, expect

READ_PIXELS = """async (selector) => {
    const image = document.querySelector(selector);
    await image.decode();
    const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
    const context = canvas.getContext('2d');
    context.drawImage(image, 0, 0);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    return [canvas.width, canvas.height, Array.from(data, (value) => String.fromCharCode(value)).join('')];
}"""


def draw(page: Page, prompt: str) -> None:
    """Type a prompt, press Enter, and wait for the image."""
    begin(page, prompt)
    wait_until_done(page)


def begin(page: Page, prompt: str) -> None:
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")


def wait_until_done(page: Page) -> None:
    expect(page.locator("#cancel")).to_be_hidden()
    expect(page.locator("#details")).to_be_visible()


def pixels(page: Page, selector: str = "#image") -> tuple[tuple[int, int], bytes]:
    """The size of an image of the page, and its pixels as RGBA."""
    width, height, data = page.evaluate(READ_PIXELS, selector)
    return (width, height), data.encode("latin-1")


def seed_of(page: Page) -> int:
    """The seed of the image that is shown."""
    return int(page.locator("#edge").inner_text().rpartition(" ")[2])
