"""The report of a comparison, opened as a file in Chromium."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

import convnext
from convnext.comparison.cell import Cell
from convnext.comparison.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, and there is none on the path")
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(digits_run: convnext.Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a report on three contenders, one of which is missing a training."""
    folder = tmp_path_factory.mktemp("compared")
    run = shutil.copytree(digits_run.path, folder / "run", symlinks=True)
    small = convnext.train(convnext.recipe("digits", epochs=1, output=folder, **{"model.dims": (16, 32, 64)})).path
    cell = Cell("large", run=run)
    write_report([cell, Cell("small", run=small), replace(cell, model="<b>same|one</b>"), Cell("none")], folder / "out")
    return (folder / "out" / "report.html").as_uri()


@pytest.fixture
def options() -> dict[str, Any]:
    """Of the browser's context; a test may have its own."""
    return {}


@pytest.fixture
def page(browser: Browser, address: str, options: dict[str, Any]) -> Iterator[Page]:
    """The report, just opened. At the end there is nothing on the console, and nothing was fetched."""
    with browser.new_context(**options) as context:
        page = context.new_page()
        page.set_default_timeout(20_000)
        seen: list[str] = []
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("request", lambda request: seen.append(request.url))
        page.goto(address)
        yield page
        assert [text for text in seen if text != address and not text.startswith("data:")] == []


def column(page: Page, region: str, number: int) -> list[str]:
    return (
        page.get_by_role("region", name=region, exact=True)
        .locator(f"tbody tr > :nth-child({number})")
        .all_inner_texts()
    )


def test_tables_sort_by_number_and_by_name_both_ways(page: Page) -> None:
    table = page.get_by_role("region", name="What it costs", exact=True)
    for region, name, number in (("What it costs", "parameters", 2), ("How good", "ECE", 8)):
        header = page.get_by_role("region", name=region, exact=True).get_by_role("button", name=name, exact=True)
        orders = []
        for order in ("descending", "ascending"):
            header.click()
            expect(header.locator("..")).to_have_attribute("aria-sort", order)
            orders.append([float(re.sub("[^0-9.]", "", text)) for text in column(page, region, number)])
        assert orders == [sorted(orders[0], reverse=True), sorted(orders[0])]
        assert orders[0] != orders[1]
    table.get_by_role("button", name="contender").click()
    names = ["<b>same|one</b>", "large", "small"]
    assert column(page, "What it costs", 1) == names
    expect(table.locator("[aria-sort]")).to_have_count(1)
    table.get_by_role("button", name="contender").press("Enter")
    assert column(page, "What it costs", 1) == names[::-1]


def test_plots_and_images_are_to_be_seen(page: Page) -> None:
    plots = page.locator("svg.plot")
    assert plots.count() == 5  # differences, accuracy, calibration, and classes of two
    for plot in plots.all():
        box = plot.bounding_box()
        assert box is not None
        assert box["width"] > 300
        assert box["height"] > 100
        assert plot.locator("path").count() > 10
        assert plot.get_attribute("aria-label")
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.locator(".images img").count() >= 12
    expect(page.locator(".conclusion")).to_contain_text("With one seed this is about these trained weights only")
    expect(page.locator(".missing")).to_contain_text("none, seed 0: not done yet")
    page.get_by_text("Every class", exact=True).click()
    expect(page.get_by_role("region", name="Every class", exact=True).locator("tbody tr")).to_have_count(10)


@pytest.mark.parametrize("options", [PHONE])
def test_a_phone_has_no_horizontal_scroll(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("options", [PHONE, {"color_scheme": "dark"}], ids=["phone, light", "dark"])
def test_it_is_accessible(page: Page, options: dict[str, Any]) -> None:
    for summary in page.locator("summary").all():
        summary.click()
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 3 * 128) == ("color_scheme" in options)
