"""The page of `convnext serve`, used in Chromium as people use it."""

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, Route, expect, sync_playwright

import convnext
from tests.support.serving import Served

CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, and there is none on the path")
TIMEOUT = 20_000  # milliseconds, on a busy machine
NOTED = re.compile("Failed to load resource")  # the browser's own line for a status that the page shows in words
FILES = """encoded => {
    const files = new DataTransfer();
    for (const [name, text] of Object.entries(encoded))
        files.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name, {type: "image/png"}));
    return files;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(digits_run: convnext.Run) -> Iterator[Served]:
    with Served(digits_run.path) as served:
        yield served


@pytest.fixture
def options() -> dict[str, Any]:
    """Of the browser's context; a test may have its own."""
    return {}


@pytest.fixture
def page(browser: Browser, server: Served, options: dict[str, Any]) -> Iterator[Page]:
    """The page, just opened. At the end there is no error on the console, and nothing asked another host."""
    with browser.new_context(**options) as context:
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        expect.set_options(timeout=TIMEOUT)
        errors: list[str] = []
        requests: list[str] = []

        def note(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning") and not NOTED.match(message.text):
                errors.append(message.text)

        page.on("console", note)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        # From the first: nothing waits for the browser to intercept choosers, and one that comes before is missed.
        page.on("filechooser", lambda _: None)
        page.goto(server.url)
        expect(page.locator("#facts")).to_contain_text("10 classes")
        yield page
        assert errors == []
        assert [url for url in requests if not url.startswith((server.url, "blob:"))] == []


@pytest.fixture(scope="module")
def images(digits_images: Path) -> list[Path]:
    """Twelve digits."""
    return [sorted((digits_images / "test" / str(number % 10)).iterdir())[number // 10] for number in range(12)]


def card_of(page: Page, name: str) -> Locator:
    return page.locator(".card", has=page.get_by_role("heading", name=name, exact=True))


def choose(page: Page, *files: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose images").click()
    chooser.value.set_files(list(files))


def encoded(*paths: Path) -> dict[str, str]:
    return {path.name: base64.b64encode(path.read_bytes()).decode() for path in paths}


def expect_answer(card: Locator) -> None:
    expect(card).to_have_attribute("data-state", "answer")
    expect(card.get_by_role("listitem")).to_have_count(5)
    expect(card.locator(".percent").first).to_have_text(re.compile(r"^(> )?\d+\.\d %$"))


def test_an_image_that_is_chosen_gets_the_classes_that_the_command_names(
    page: Page, images: list[Path], digits_run: convnext.Run
) -> None:
    choose(page, images[7])
    card = card_of(page, images[7].name)
    expect_answer(card)
    expected = convnext.Predictor.load(digits_run.path)(images[7])
    assert card.locator(".class-name").all_text_contents() == [name for name, _ in expected]
    shown = [float(text.strip("<> %")) for text in card.locator(".percent").all_text_contents()]
    assert shown == pytest.approx([max(0.1, min(99.9, 100 * odds)) for _, odds in expected], abs=0.1)
    widths = [box.bounding_box() for box in card.locator(".bar span").all()]
    assert [box["width"] for box in widths if box] == sorted([box["width"] for box in widths if box], reverse=True)
    expect(page.locator("#news")).to_contain_text(f"{images[7].name}: {expected[0].class_name}, ")
    assert page.title().endswith(" · ConvNeXt")


def test_several_images_keep_their_order_and_go_four_at_a_time(page: Page, images: list[Path]) -> None:
    under_way, most = set[Request](), 0

    def count(request: Request) -> None:
        nonlocal most
        if "/predict" in request.url:
            under_way.add(request)
            most = max(most, len(under_way))

    page.on("request", count)
    page.on("requestfinished", lambda request: under_way.discard(request))
    choose(page, *images)
    expect(page.locator("#news")).to_have_text("12 images done, 0 of them without an answer.")
    expect(page.locator("#count")).to_have_text("12 images")
    assert page.locator(".name").all_text_contents() == [path.name for path in images]
    assert 1 < most <= 4
    choose(page, images[0])  # later ones come first
    expect(page.locator("#count")).to_have_text("13 images")
    assert page.locator(".name").all_text_contents()[:2] == [images[0].name] * 2
    page.get_by_role("button", name="Clear all").click()
    expect(page.locator(".card")).to_have_count(0)
    expect(page.locator("#toolbar")).to_be_hidden()


def test_images_are_dropped(page: Page, images: list[Path]) -> None:
    files = page.evaluate_handle(FILES, encoded(*images[:2]))
    page.dispatch_event("main", "dragover", {"dataTransfer": files})
    expect(page.locator("body")).to_have_class("dragging")
    page.dispatch_event("main", "drop", {"dataTransfer": files})
    expect(page.locator("body")).not_to_have_class("dragging")
    for path in images[:2]:
        expect_answer(card_of(page, path.name))
    page.dispatch_event("main", "drop", {"dataTransfer": page.evaluate_handle("new DataTransfer()")})
    expect(page.get_by_role("alert")).to_contain_text("no image file")


@pytest.mark.parametrize("options", [{"permissions": ["clipboard-read", "clipboard-write"]}])
def test_an_image_is_pasted(page: Page, images: list[Path]) -> None:
    page.keyboard.press("Control+V")
    expect(page.get_by_role("alert")).to_contain_text("no image to paste")
    write = "async files => navigator.clipboard.write([new ClipboardItem({'image/png': files.files[0]})])"
    page.evaluate(write, page.evaluate_handle(FILES, encoded(images[3])))
    page.keyboard.press("Control+V")
    expect_answer(card_of(page, "image.png"))
    expect(page.get_by_role("alert")).to_be_hidden()


def test_the_camera_takes_pictures_until_escape(page: Page) -> None:
    page.get_by_role("button", name="Camera", exact=True).press("Enter")
    shutter = page.get_by_role("button", name="Take a picture")
    expect(shutter).to_be_focused()
    shutter.press("Enter")
    expect_answer(card_of(page, "camera-1.jpg"))
    shutter.press("Enter")
    expect_answer(card_of(page, "camera-2.jpg"))
    track = page.evaluate_handle("document.getElementById('video').srcObject.getTracks()[0]")
    assert track.evaluate("track => track.readyState") == "live"
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Camera", exact=True)).to_be_focused()
    expect(page.locator("#camera")).to_be_hidden()
    assert track.evaluate("track => track.readyState") == "ended"


def test_the_heat_map_of_each_class_method_and_stage(page: Page, images: list[Path]) -> None:
    choose(page, images[6])
    card = card_of(page, images[6].name)
    heat, caption = card.locator(".heat"), card.locator(".caption")
    names = card.locator(".class-name").all_text_contents
    sources = set()

    def expect_heat(name: str) -> None:
        expect(caption).to_contain_text(f"Warm: what speaks for {name}. ")
        expect(heat).to_have_attribute("alt", f"Heat map: where the model looked for {name}")
        heat.evaluate("image => image.decode()")
        sources.add(heat.get_attribute("src"))

    card.get_by_role("button", name="Where did the model look?").click()
    expect_answer(card)
    best, second, *_ = names()
    expect_heat(best)
    card.get_by_text(second, exact=True).click()
    expect_heat(second)
    card.get_by_label("Stage").select_option("first, fine")
    expect_heat(second)
    card.get_by_label("Method").select_option("Occlusion")
    expect_heat(second)
    expect(card.get_by_label("Stage")).to_be_hidden()
    assert len(sources) == 4
    card.get_by_role("button", name="Show the image alone").click()
    expect(heat).to_be_hidden()
    expect(card.get_by_role("radio").first).to_be_hidden()


def test_what_is_no_image_is_refused_in_words(page: Page, server: Served, images: list[Path], tmp_path: Path) -> None:
    truncated, document, huge = (tmp_path / name for name in ("half.png", "paper.pdf", "huge.png"))
    truncated.write_bytes(images[0].read_bytes()[:60])
    document.write_bytes(b"%PDF-1.7 no image")
    with huge.open("wb") as file:
        file.truncate(json.loads(page.request.get(f"{server.url}/model").text())["limits"]["bytes"] + 1)
    choose(page, truncated, document, images[0])
    for path in (truncated, document):
        card = card_of(page, path.name)
        expect(card.locator(".reason")).to_contain_text(path.name)  # in the server's words
        expect(card.get_by_role("button", name="Retry")).to_be_hidden()  # it would help nobody
    expect(card_of(page, document.name).get_by_text("The browser has no preview")).to_be_visible()
    expect_answer(card_of(page, images[0].name))
    expect(page.locator("#count")).to_have_text("3 images · 2 without an answer")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    choose(page, huge)
    expect(card_of(page, "huge.png").locator(".reason")).to_have_text(re.compile(r"has [\d.,]+ MB; the server takes"))
    assert not any("predict" in url for url in asked)


def test_a_server_that_is_gone_is_named_and_asked_again(page: Page, images: list[Path], tmp_path: Path) -> None:
    lost = tmp_path / "lost.png"
    shutil.copy(images[2], lost)
    page.route("**/predict*", lambda route: route.abort("connectionrefused"))
    choose(page, images[1], lost)
    for path in (images[1], lost):
        reason = card_of(page, path.name).locator(".reason")
        expect(reason).to_have_text("The server does not answer. Is it still running?")
    page.unroute("**/predict*")
    lost.unlink()
    for path in (images[1], lost):
        card_of(page, path.name).get_by_role("button", name="Retry").press("Enter")
    expect_answer(card_of(page, images[1].name))
    expect(card_of(page, "lost.png").locator(".reason")).to_contain_text("The browser cannot read it")


def test_a_busy_server_is_asked_again_by_itself(page: Page, images: list[Path]) -> None:
    refusals = iter(range(3))

    def refuse(route: Route) -> None:
        if next(refusals, None) is None:
            route.continue_()
        else:
            route.fulfill(status=503, headers={"Retry-After": "0"}, json={"detail": "the queue is full"})

    page.route("**/predict*", refuse)
    choose(page, images[1])
    expect_answer(card_of(page, images[1].name))
    assert next(refusals, None) is None


def test_what_took_the_server_too_long_is_not_asked_again(page: Page, images: list[Path]) -> None:
    words, asked = "no answer within 30 s: try again later", list[Request]()

    def refuse(route: Route) -> None:
        asked.append(route.request)
        route.fulfill(status=503, headers={"Retry-After": "0"}, json={"detail": words})

    page.route("**/predict*", refuse)
    choose(page, images[1])
    card = card_of(page, images[1].name)
    expect(card.locator(".reason")).to_contain_text(words)
    assert len(asked) == 1
    page.unroute("**/predict*")
    card.get_by_role("button", name="Retry").click()
    expect_answer(card)


def test_the_page_opens_again_when_the_server_does(page: Page) -> None:
    page.route("**/model", lambda route: route.abort("connectionrefused"))
    page.reload()
    expect(page.locator("#facts")).to_have_text("The server does not answer. Is it still running?")
    page.unroute("**/model")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#facts")).to_contain_text("10 classes")
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()


def test_everything_works_from_the_keyboard(page: Page, images: list[Path]) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Choose images")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(images[:2])
    card, other = card_of(page, images[0].name), card_of(page, images[1].name)
    expect_answer(card)
    expect_answer(other)
    for name in ("Camera", "Clear all", f"Remove {images[0].name}", "Where did the model look?"):
        page.keyboard.press("Tab")
        button = page.get_by_role("button", name=name).first
        expect(button).to_be_focused()
        assert button.evaluate("button => getComputedStyle(button).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+Tab")  # the classes come before the button
    expect(card.get_by_role("radio").first).to_be_focused()
    page.keyboard.press("ArrowDown")
    second = card.locator(".class-name").nth(1).text_content()
    expect(card.locator(".caption")).to_contain_text(f"Warm: what speaks for {second}. ")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(card).to_have_count(0)
    expect(other.get_by_role("button", name="Remove")).to_be_focused()  # the focus is not lost
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Choose images")).to_be_focused()


@pytest.mark.parametrize("options", [{"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}])
def test_a_phone_has_no_horizontal_scroll(page: Page, images: list[Path], tmp_path: Path) -> None:
    long = tmp_path / ("a-photograph-with-a-very-long-name-without-a-single-space-in-it-" * 3 + ".png")
    shutil.copy(images[2], long)
    choose(page, long, images[3])
    card = card_of(page, long.name)
    card.get_by_role("button", name="Where did the model look?").tap()
    expect(card.locator(".caption")).to_contain_text("Warm: ")
    page.get_by_role("button", name="Camera", exact=True).tap()
    expect(page.get_by_role("button", name="Take a picture")).to_be_focused()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    heights = [box.bounding_box() for box in page.get_by_role("button").all() if box.is_visible()]
    assert min(box["height"] for box in heights if box) >= 44  # that a finger hits


@pytest.mark.parametrize("options", [{"color_scheme": "light"}, {"color_scheme": "dark"}], ids=["light", "dark"])
def test_light_and_dark_are_accessible(
    browser: Browser, server: Served, images: list[Path], options: dict[str, Any], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    with browser.new_context(**options, bypass_csp=True, reduced_motion="reduce") as context:  # axe is a script, too
        page = context.new_page()
        page.goto(server.url)
        results = [Axe().run(page)]
        choose(page, *images[:3], bad)
        expect(page.locator("#news")).to_have_text("4 images done, 1 of them without an answer.")
        card = card_of(page, images[0].name)
        card.get_by_role("button", name="Where did the model look?").click()
        expect(card.locator(".caption")).to_contain_text("Warm: ")
        page.get_by_role("button", name="Camera", exact=True).click()
        expect(page.get_by_role("button", name="Take a picture")).to_be_focused()
        results.append(Axe().run(page))
        page.get_by_role("link", name="API").click()
        expect(page.get_by_role("heading", name="POST /predict")).to_be_visible()
        results.append(Axe().run(page))
        assert [result.generate_report() for result in results if result.violations_count] == []
        ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground))) < 3 * 128) == (options["color_scheme"] == "dark")


def test_names_with_markup_are_text(page: Page, images: list[Path], tmp_path: Path) -> None:
    markup = "<img src=x onerror=document.title='owned'>"
    image = tmp_path / f"{markup}.png"
    shutil.copy(images[4], image)

    answer = {"results": [{"name": image.name, "predictions": [{"class": markup, "probability": 0.7}]}]}
    page.route("**/predict*", lambda route: route.fulfill(json=answer))
    choose(page, image)
    expect(page.locator(".class-name").first).to_have_text(markup)
    page.get_by_role("button", name="Where did the model look?").click()
    expect(page.locator(".caption")).to_contain_text(markup)  # the server's words: there is no such class
    assert page.locator("img[src=x]").count() == 0
    assert "owned" not in page.title()
