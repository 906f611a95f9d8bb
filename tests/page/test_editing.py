"""Drawing from an image: choosing it, painting a mask with a pointer and with keys, what is sent."""

import io
from pathlib import Path

import pytest
from PIL import Image, ImageChops
from playwright.sync_api import Page, Route, expect

from tests.page.actions import draw, pixels, wait_until_done
from tests.page.service import Service

MASK = "#mask"
UPPER_RIGHT, LOWER_LEFT = (0.75, 0.25), (0.25, 0.75)
LEFT = (0.2, 0.4)
Point = tuple[float, float]


def paint(page: Page, *points: Point) -> None:
    """A stroke through `points`, in shares of the image, which is in the middle of the canvas."""
    left, top, width, height = page.evaluate(
        """(selector) => {
            const canvas = document.querySelector(selector);
            canvas.scrollIntoView();
            const box = canvas.getBoundingClientRect();
            const border = parseFloat(getComputedStyle(canvas).borderLeftWidth);
            const scale = Math.min(
                (box.width - 2 * border) / canvas.width, (box.height - 2 * border) / canvas.height);
            const [width, height] = [scale * canvas.width, scale * canvas.height];
            return [box.left + (box.width - width) / 2, box.top + (box.height - height) / 2, width, height];
        }""",
        MASK,
    )
    places = [(left + x * width, top + y * height) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def sent_image(service: Service, name: str) -> Image.Image:
    """The image or the mask of the one edit, as the gateway has read it."""
    (upload,) = service.uploads
    file = upload.mask if name == "mask" else upload.image
    assert file is not None
    with Image.open(io.BytesIO(file)) as image:
        return image.convert("RGBA")


def alpha_at(mask: Image.Image, point: Point) -> int:
    alpha = mask.getchannel("A").getpixel((int(point[0] * mask.width), int(point[1] * mask.height)))
    assert isinstance(alpha, int)
    return alpha


def test_inpainting_sends_the_image_and_the_painted_mask(page: Page, service: Service) -> None:
    draw(page, "an apple")
    shown = pixels(page)
    page.get_by_role("button", name="Edit").click()
    expect(page.locator(MASK)).to_be_focused()
    paint(page, UPPER_RIGHT, UPPER_RIGHT)
    expect(page.locator("#mask-share")).to_have_text("2 % of the image is drawn anew.")
    expect(page.locator("#strength-value")).to_have_text("1.00")  # the default with a mask
    page.fill("#strength", "0.8")
    page.fill("#prompt", "a worm")
    page.locator("#draw").click()
    expect(page.locator("#caption")).to_have_text("a worm")
    wait_until_done(page)
    image, mask = sent_image(service, "image"), sent_image(service, "mask")
    assert (image.size, image.tobytes()) == shown
    assert mask.size == image.size
    assert [alpha_at(mask, point) for point in (UPPER_RIGHT, LOWER_LEFT)] == [0, 255]
    assert set(mask.getchannel("A").tobytes()) == {0, 255}
    expect(page.locator("#facts")).to_contain_text("Strength0.8")
    expect(page.locator("#notes")).to_be_hidden()  # the whole image was used
    size, edited = pixels(page)
    before, after = (Image.frombytes("RGBA", size, data) for data in (shown[1], edited))
    box = ImageChops.difference(before.convert("RGB"), after.convert("RGB")).getbbox()
    assert box is not None  # something has changed, in the upper right quarter alone
    assert box[0] >= size[0] // 2 and box[3] <= size[1] // 2


def test_erasing_undoing_and_clearing_a_mask(page: Page, service: Service) -> None:
    draw(page, "an apple")
    page.get_by_role("button", name="Edit").click()
    share = page.locator("#mask-share")
    paint(page, UPPER_RIGHT, LOWER_LEFT)
    painted = share.inner_text()
    page.get_by_text("Erase", exact=True).click()
    page.fill("#brush-size", "40")
    paint(page, LOWER_LEFT, LOWER_LEFT)
    erased = share.inner_text()
    assert int(erased.split()[0]) < int(painted.split()[0])
    page.get_by_role("button", name="Undo").click()
    expect(share).to_have_text(painted)
    page.get_by_role("button", name="Clear").click()
    expect(share).to_have_text("Nothing painted: the whole image changes.")
    expect(page.locator("#strength-value")).to_have_text("0.60")
    page.locator("#draw").click()
    expect(page.locator("#facts")).to_contain_text("Strength0.6")  # what the service chose
    (upload,) = service.uploads
    assert upload.mask is None


def test_a_mask_is_painted_with_keys(page: Page, service: Service) -> None:
    draw(page, "an apple")
    page.get_by_role("button", name="Edit").click()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowUp", "ArrowUp", " "):
        page.locator(MASK).press(key)
    expect(page.locator("#mask-share")).to_have_text("2 % of the image is drawn anew.")
    page.locator("#draw").click()
    expect(page.locator("#facts")).to_contain_text("Strength1")
    mask = sent_image(service, "mask")
    assert [alpha_at(mask, point) for point in ((0.71, 0.29), LOWER_LEFT)] == [0, 255]


def test_a_photograph_is_made_upright_and_no_larger_than_needed(
    page: Page, service: Service, tmp_path: Path
) -> None:
    photograph = Image.new("RGB", (600, 300), "blue")
    photograph.paste("red", (0, 0, 300, 300))
    exif = Image.Exif()
    exif[0x0112] = 6  # the left side is the top
    photograph.save(tmp_path / "photograph.jpg", exif=exif)
    page.set_viewport_size({"width": 1280, "height": 700})  # too low for the whole width of the canvas
    page.get_by_text("From an image").click()
    page.set_input_files("#file", tmp_path / "photograph.jpg")
    expect(page.locator(MASK)).to_be_visible()
    page.fill("#brush-size", "4")
    paint(page, LEFT, LEFT)
    draw(page, "a lake")
    image, mask = sent_image(service, "image"), sent_image(service, "mask")
    box = mask.getchannel("A").point(lambda alpha: 255 - alpha).getbbox()
    assert box is not None
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    assert middle == pytest.approx((LEFT[0] * 96, LEFT[1] * 192), abs=1.0)
    assert image.size == (96, 192)  # twice the longest side of the model's sizes
    top, bottom = image.getpixel((48, 24)), image.getpixel((48, 168))
    assert isinstance(top, tuple) and isinstance(bottom, tuple)
    assert top[0] > 200 > 100 > top[2] and bottom[2] > 200 > 100 > bottom[0]
    assert page.locator("#notes li").all_inner_texts() == [
        "Of the image that it started from, 96 × 96 of 96 × 192 pixels were used."
    ]


def test_a_file_that_is_no_image_is_a_sentence(page: Page, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    page.get_by_text("From an image").click()
    page.locator("#draw").click()  # the prompt is required
    expect(page.locator("#prompt")).to_be_focused()
    page.fill("#prompt", "a lake")
    page.locator("#draw").click()
    expect(page.get_by_role("alert")).to_have_text("Choose an image to start from, or draw from words.")
    page.set_input_files("#file", tmp_path / "text.png")
    expect(page.get_by_role("alert")).to_have_text("This file is not an image that the browser can read.")


def test_a_service_without_edits_offers_none(page: Page) -> None:
    def without_edits(route: Route) -> None:
        answer = route.fetch().json()
        answer["data"][0]["edits"] = False
        route.fulfill(json=answer)

    page.route("**/v1/models", without_edits)
    page.reload()
    page.locator("#guide").wait_for()
    expect(page.locator("#modes")).to_be_hidden()
    draw(page, "an apple")
    expect(page.get_by_role("button", name="Edit")).to_be_hidden()


def test_edits_that_are_not_there_are_a_sentence(page: Page) -> None:
    draw(page, "an apple")
    answer = {"error": {"message": "There is no such route."}}
    page.route("**/v1/images/edits", lambda route: route.fulfill(status=404, json=answer))
    page.get_by_role("button", name="Edit").click()
    page.locator("#draw").click()
    expect(page.get_by_role("alert")).to_have_text(
        "This service does not change images; it draws from words alone."
    )


@pytest.mark.parametrize("key", ["Tab", "Shift+Tab"])
def test_the_mask_does_not_trap_the_keyboard(page: Page, key: str) -> None:
    draw(page, "an apple")
    page.get_by_role("button", name="Edit").click()
    page.locator(MASK).press(key)
    expect(page.locator(MASK)).not_to_be_focused()
