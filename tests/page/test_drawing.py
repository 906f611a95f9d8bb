"""Drawing from words: previews, the image, cancelling, errors, the session's images."""

import re
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page, Route, expect

from safelight.service.usage.records import RequestOutcome
from tests.page.actions import begin, draw, pixels, seed_of, wait_until_done
from tests.page.conftest import Traffic
from tests.page.held_engine import DIVERGING
from tests.page.service import GENERATIONS, SETTINGS, Service, read_pixels

ROUTE = "**/v1/images/generations"
# A stream in every form that the standard allows: comments, three kinds of line ends, data over two lines.
STREAM = (
    ': hi\r\n\r\nevent: a\r\ndata: {"x":\r\ndata: "é🍎"}\r\n\r\n'
    "data:[1]\n\nevent:b\rdata: 2\r\rdata: [DONE]\n\n"
)
TOOK = re.compile(r"^The image took [\d.]+ m?s\.$")
READ_STREAM = """async (text) => {
    const { readEvents } = await import('./page/sse.js');
    const bytes = new TextEncoder().encode(text);
    const results = [];
    for (let cut = 0; cut < bytes.length; cut += 1) {
        const parts = [bytes.slice(0, cut), bytes.slice(cut)];
        const body = new ReadableStream({
            start: (to) => { parts.forEach((part) => to.enqueue(part)); to.close(); },
        });
        const events = [];
        for await (const event of readEvents(body)) events.push(event);
        results.push(events);
    }
    return results;
}"""


def refuse(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """An answer that this service does not give: of an older one, or of a proxy in front of it."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": "invalid_value"}
    return {"status": status, "json": {"error": error, "request_id": "r-1"}}


def test_previews_appear_and_then_the_image(page: Page, service: Service, traffic: Traffic) -> None:
    files = service.stream(ticks=(1, 1, 2), prompt="an ((apple))", seed=7, partial_images=2)
    expected = [read_pixels(file) for file in files]
    assert len(set(expected)) == 3
    service.gate.hold()
    page.fill("#prompt", "an ((apple))")
    page.locator("#settings summary").click()
    page.fill("#seed", "7")
    page.press("#prompt", "Enter")
    status, sheet = page.locator("#status"), page.locator("#sheet")
    expect(status).to_have_text("Drawing…")
    for number in (1, 2):
        service.gate.allow(1)
        expect(status).to_have_text(f"Preview {number} of 2.")
        expect(sheet).to_have_class("sheet under-way")
        assert pixels(page) == expected[number - 1]
        assert page.locator("#progress").get_attribute("value") == str(number)
    service.gate.allow(2)
    wait_until_done(page)
    expect(sheet).to_have_class("sheet")
    assert pixels(page) == expected[2]
    expect(page.locator("#image")).to_have_attribute("alt", "an ((apple))")
    expect(status).to_have_text(TOOK)
    assert traffic.sent == [
        {"model": "emoji-128", "prompt": "an ((apple))", "seed": 7, "stream": True, "partial_images": 2}
    ]


def test_an_image_says_what_it_cost_and_what_had_no_effect(page: Page, service: Service) -> None:
    page.locator("#settings summary").click()
    page.fill("#previews", "0")
    draw(page, "an ((apple))")
    names, values = (page.locator(f"#costs {tag}").all_inner_texts() for tag in ("dt", "dd"))
    costs = dict(zip(names, values, strict=True))
    assert page.locator("#notes li").all_inner_texts() == [
        "Prompt syntax of other programs, without effect: ((apple))."
    ]
    (usage,) = service.record().image_usages
    seconds = [cost.device_seconds for cost in (usage.encode, usage.denoise.cost, usage.decode)]
    texts = page.evaluate(
        "(all) => import('./page/dom.js').then(({ formatSeconds }) => all.map(formatSeconds))",
        [sum(seconds), *seconds],
    )
    shown = [costs[name] for name in ("Device time", "Text", "Denoising", "Decoding")]
    assert (shown, costs["Network evaluations"]) == (texts, "4")


def test_costs_have_units(page: Page) -> None:
    device_seconds = {"encode": 0.25, "denoise": 1.75, "decode": 0.375}
    usage = {"device_seconds": device_seconds, "seconds": 125.0, "queue_seconds": 0.0625}
    usage |= {"nfe": 5, "flops": 2130}
    answers = [{"usage": {"safelight": usage | {"previews": count}}} for count in (0, 1, 3)]
    for answer, previews in zip(answers, ("", " with 1 preview", " with 3 previews"), strict=True):
        costs = page.evaluate(
            "(image) => import('./page/gallery.js').then(({ costsOf }) => costsOf(image))",
            {"answer": answer, "numImages": 2},
        )
        assert {name: text for name, text, *_ in costs} == {
            "Device time": "2.38 s, for 2 images",
            "Total time": "2 min 5 s",
            "Text": "0.25 s",
            "Denoising": "1.75 s",
            "Decoding": f"0.38 s{previews}",
            "Waiting": "63 ms",
            "Network evaluations": "5",
            "Operations": "2.13 kFLOP",
        }


def test_what_the_service_adjusted_is_said(page: Page) -> None:
    adjusted = [
        {"field": "size", "asked": "1024x1024", "used": "128x128"},
        {"field": "stepz", "asked": 3, "used": None},
    ]
    edit = {"uploaded_size": "300x200", "crop": [50, 0, 250, 200]}
    usage = {"adjusted": adjusted, "truncated": True, "edit": edit}
    usage |= {"unknown_words": ["blorp", "zorp"], "prompt_syntax": []}
    usage |= {"corrected_words": {"aple": "apple"}}
    notes = page.evaluate(
        "(answer) => import('./page/gallery.js').then(({ notesOf }) => notesOf({ answer }))",
        {"usage": {"safelight": usage}},
    )
    assert notes == [
        "size: 1024x1024 was changed to 128x128.",
        "stepz: 3 had no effect.",
        "Misspelt words were read as known ones: aple as apple.",
        "Not known to the model, so without effect: blorp, zorp.",
        "Of the image that it started from, 200 × 200 of 300 × 200 pixels were used.",
        "The prompt is longer than the model reads; its end had no effect.",
    ]


def test_every_setting_is_sent(page: Page, service: Service, traffic: Traffic) -> None:
    page.locator("#settings summary").click()
    page.fill("#negative_prompt", "green")
    page.select_option("#size", "96x64")
    page.select_option("#solver", "ddim")
    values = {"num_inference_steps": 9, "guidance_scale": 6.5, "n": 2, "seed": 3}
    for field, value in values.items():
        page.fill(f"#{field}", str(value))
    page.fill("#previews", "0")
    draw(page, "an apple")
    fields = {"prompt": "an apple", "negative_prompt": "green", "size": "96x64", "solver": "ddim", **values}
    assert traffic.sent == [{"model": "emoji-128", **fields, "stream": True, "partial_images": 0}]
    assert page.locator("#steps-slider").input_value() == "9"
    expect(page.locator("#notes")).to_be_hidden()  # the service has changed nothing
    assert pixels(page) == read_pixels(service.draw(**fields)[0])


def test_a_setting_that_is_out_of_range_is_not_sent(page: Page, traffic: Traffic) -> None:
    page.locator("#settings summary").click()
    page.fill("#num_inference_steps", "201")
    page.locator("#settings summary").click()
    begin(page, "an apple")
    expect(page.locator("#num_inference_steps")).to_be_focused()  # shown, though it was folded away
    assert traffic.sent == []


@pytest.mark.parametrize("how", ["button", "key"])
def test_cancelling_takes_the_image_out_of_the_engine(page: Page, service: Service, how: str) -> None:
    service.gate.hold()
    begin(page, "an apple")
    service.gate.allow(1)
    expect(page.locator("#status")).to_have_text("Preview 1 of 2.")
    assert service.num_running == 1
    if how == "button":
        page.locator("#cancel").click()
        expect(page.locator("#draw")).to_be_focused()
    else:
        page.keyboard.press("Escape")
        expect(page.locator("#prompt")).to_be_focused()
    assert service.record().outcome is RequestOutcome.ABORTED
    expect(page.locator("#status")).to_have_text("Cancelled.")
    expect(page.locator("#film")).to_be_hidden()
    expect(page.locator("#empty")).to_be_visible()
    ticks = service.gate.num_ticks
    service.gate.open()
    draw(page, "an apple")
    assert service.gate.num_ticks == ticks + 4  # those of the second image alone


def test_a_full_service_says_when_to_try_again(page: Page, service: Service) -> None:
    service.gate.hold()
    others = {"prompt": "others", "n": SETTINGS.max_pictures, "stream": True}
    with httpx2.stream("POST", f"{service.url}{GENERATIONS}", json=others, timeout=60.0) as response:
        begin(page, "an apple")
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text("Too many images are waiting; please try again later (in 2 s).")
        expect(alert).to_contain_text("Request ")
        service.gate.open()
        response.read()


def test_a_service_without_streams_is_asked_without(page: Page, service: Service, traffic: Traffic) -> None:
    def refuse_streams(route: Route) -> None:
        if (route.request.post_data_json or {}).get("stream"):
            route.fulfill(**refuse(400, "stream: streaming is not supported yet; allowed: false.", "stream"))
        else:
            route.fallback()

    page.route(ROUTE, refuse_streams)
    draw(page, "an apple")
    expect(page.locator("#status")).to_contain_text("This service sends no previews")
    traffic.sent.clear()
    draw(page, "a pear")
    assert traffic.sent == [{"model": "emoji-128", "prompt": "a pear"}]  # refused only once
    expect(page.locator("#status")).to_have_text(TOOK)
    assert pixels(page) == read_pixels(service.draw(prompt="a pear", seed=seed_of(page))[0])


def test_a_refusal_of_the_service_is_shown_as_it_is(page: Page, service: Service) -> None:
    page.evaluate("document.getElementById('solver').add(new Option('x', 'x', true, true))")
    begin(page, "an apple")
    answer = httpx2.post(f"{service.url}{GENERATIONS}", json={"prompt": "an apple", "solver": "x"})
    assert answer.status_code == 400
    sentence = answer.json()["error"]["message"]
    expect(page.get_by_role("alert").locator("p").first).to_have_text(sentence)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (refuse(401, "A key is required."), "A key is required. Enter one under Key, at the top."),
        ({"status": 502, "body": "<html>"}, "The service answered with status 502 and no reason."),
        (
            {"content_type": "text/event-stream", "body": ": nothing\n\n"},
            "The service closed the connection before the end.",
        ),
        (None, "The service did not answer. Is it still running, and is the network up?"),
    ],
)
def test_an_error_is_a_sentence(page: Page, answer: dict[str, Any] | None, sentence: str) -> None:
    draw(page, "an apple")
    page.route(ROUTE, lambda route: route.abort() if answer is None else route.fulfill(**answer))
    begin(page, "another")
    expect(page.get_by_role("alert").locator("p").first).to_have_text(sentence)
    expect(page.locator("#caption")).to_have_text("an apple")  # the image before is shown again
    assert page.locator("#frames li").count() == 1


BROKEN = "The model drew no image: the denoiser left numbers that are not finite."


def test_a_fault_during_a_stream_is_a_sentence(page: Page) -> None:
    begin(page, DIVERGING)
    expect(page.get_by_role("alert").locator("p").first).to_have_text(BROKEN)
    expect(page.locator("#empty")).to_be_visible()


def test_a_page_without_a_service_can_try_again(page: Page) -> None:
    page.route("**/v1/models", lambda route: route.abort())
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("The service did not answer.")
    page.unroute("**/v1/models")
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_be_hidden()
    draw(page, "an apple")


def test_the_same_seed_again_and_its_variations(page: Page, service: Service, traffic: Traffic) -> None:
    draw(page, "an apple")
    seed = seed_of(page)
    draw(page, "a pear")
    page.get_by_role("button", name="Image 1: an apple").click()
    expect(page.locator("#caption")).to_have_text("an apple")
    page.get_by_role("button", name="Same seed again").click()
    assert (page.input_value("#seed"), page.input_value("#prompt")) == (str(seed), "an apple")
    expect(page.locator("#prompt")).to_be_focused()
    page.get_by_role("button", name="Variations").click()
    wait_until_done(page)
    assert {"n": 4, "seed": seed}.items() <= traffic.sent[-1].items()
    assert page.locator("#frames .number").all_inner_texts() == ["6", "5", "4", "3", "2", "1"]
    files = service.draw(prompt="an apple", seed=seed, n=4)
    assert len(set(files)) == 4
    for number, file in enumerate(files, start=3):
        page.get_by_role("button", name=f"Image {number}: an apple").click()
        assert pixels(page) == read_pixels(file)
    expect(page.locator("#facts")).to_contain_text(f"{seed}, image 4 of 4")


def test_a_download_has_a_name_and_the_bytes(page: Page, service: Service) -> None:
    draw(page, "Étoile, 3d!")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "étoile-3d-1.png"
    (file,) = service.draw(prompt="Étoile, 3d!", seed=seed_of(page))
    assert download.value.path().read_bytes() == file


def test_an_example_is_drawn_by_a_click(page: Page) -> None:
    page.locator("#guide").get_by_role("button", name="octopus on black").click()
    wait_until_done(page)
    expect(page.locator("#caption")).to_have_text("octopus on black")


def test_the_key_is_sent_and_kept_in_the_tab(page: Page) -> None:
    page.locator("#key-panel summary").click()
    page.fill("#key", "secret")
    page.reload()
    page.locator("#guide").wait_for()
    with page.expect_request(ROUTE) as request:
        draw(page, "an apple")
    assert request.value.headers["authorization"] == "Bearer secret"
    assert page.evaluate("localStorage.length") == 0


def test_a_stream_is_read_however_it_is_cut(page: Page) -> None:
    expected = [
        {"type": "a", "data": {"x": "é🍎"}},
        {"type": "message", "data": [1]},
        {"type": "b", "data": 2},
    ]
    results = page.evaluate(READ_STREAM, STREAM)
    assert len(results) == len(STREAM.encode())
    for cut, events in enumerate(results):
        assert events == expected, cut
