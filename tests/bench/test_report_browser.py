"""The report in a real browser: Debian's Chromium, from the disk, with the network watched."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from stored import samples

from m3_bench.cli import main

SLOW_MS = 180_000  # on a busy machine; a page that does not open at all is what must be told
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@dataclass
class Visit:
    """A page that is open, and what it did."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of everything there is."""
    folder = tmp_path_factory.mktemp("browser")
    written = samples.write_both(folder)
    comparison = folder / "comparison.json"
    price = ("--price", "cpu=0.34/h", "gpu=1.10/h")
    assert main(["compare", str(written.reference), str(written.run), *price, "--quiet", "-o", str(comparison)]) == 0
    others = [str(samples.HERE / f"{name}.json") for name in ("roofline", "retrieval", "margins")]
    assert main(["report", str(comparison), *others, "-o", str(folder / "report.html"), "--quiet"]) == 0
    return folder / "report.html"


def visit(browser: Browser, report: Path, viewport: dict[str, int], scheme: str = "light") -> Visit:
    """Open the page, and write down what it asks for and complains of."""
    page = browser.new_context(viewport=viewport, color_scheme=scheme).new_page()
    found = Visit(page)
    page.on("request", lambda request: found.requests.append(request.url))
    page.on("console", lambda message: found.complaints.append(message.text))
    page.on("pageerror", lambda error: found.complaints.append(str(error)))
    page.set_default_timeout(SLOW_MS)
    page.goto(report.as_uri())
    page.wait_for_load_state("networkidle")
    return found


@pytest.fixture(params=["light", "dark"])
def wide(browser: Browser, report: Path, request: pytest.FixtureRequest) -> Iterator[Visit]:
    """The page on a screen, light and dark."""
    found = visit(browser, report, WIDE, request.param)
    yield found
    found.page.context.close()


@pytest.fixture
def phone(browser: Browser, report: Path) -> Iterator[Visit]:
    """The page on a phone."""
    found = visit(browser, report, PHONE)
    yield found
    found.page.context.close()


def test_it_opens_from_the_disk_asks_for_nothing_and_complains_of_nothing(wide, report):
    assert wide.requests == [report.as_uri()]
    assert wide.complaints == []
    assert "can the CPU replace the GPU?" in wide.page.title()
    assert "16-token text, p50" in wide.page.inner_text("#tiles")


def test_every_chart_is_drawn_and_nothing_in_it_is_cut_off(wide):
    charts = wide.page.query_selector_all("svg.chart")
    assert len(charts) == 8
    for chart in charts:
        box = chart.bounding_box()
        assert box is not None and box["width"] > 300 and box["height"] > 150
    outside = wide.page.evaluate(
        """() => [...document.querySelectorAll("svg.chart")].flatMap(svg => {
            const whole = svg.getBoundingClientRect();
            return [...svg.querySelectorAll("text, use, path[style*='--c']:not(defs path)")].filter(part => {
                const box = part.getBoundingClientRect();
                return box.left < whole.left - 1 || box.right > whole.right + 1
                    || box.top < whole.top - 1 || box.bottom > whole.bottom + 1;
            }).map(part => part.textContent || part.tagName);
        })"""
    )
    assert outside == []


def test_words_of_a_legend_or_axis_do_not_lie_on_each_other(wide):
    overlaps = wide.page.evaluate(
        """() => [...document.querySelectorAll("svg.chart")].flatMap(svg => {
            const texts = [...svg.querySelectorAll("text")].map(one => [one.textContent, one.getBoundingClientRect()]);
            const found = [];
            texts.forEach(([a, one], i) => texts.slice(i + 1).forEach(([b, other]) => {
                const wide = Math.min(one.right, other.right) - Math.max(one.left, other.left);
                const high = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
                if (wide > 2 && high > 5) found.push([a, b]);
            }));
            return found;
        })"""
    )
    assert overlaps == []


def brightness(colour: str) -> float:
    numbers = [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    return sum(weight * number for weight, number in zip((0.2126, 0.7152, 0.0722), numbers, strict=True)) / 255


def test_dark_is_dark_and_light_is_light_and_words_can_be_read(browser, report):
    for scheme, is_dark in (("light", False), ("dark", True)):
        page = visit(browser, report, WIDE, scheme).page
        style = "one => [getComputedStyle(one).backgroundColor, getComputedStyle(one).color]"
        for selector in ("body", ".card"):
            background, ink = (brightness(one) for one in page.eval_on_selector(selector, style))
            assert (background < 0.2 < ink) if is_dark else (ink < 0.2 < background)
        fill = page.eval_on_selector("svg.chart text[style*='--ink']", "one => getComputedStyle(one).fill")
        assert (brightness(fill) > 0.7) is is_dark
        page.context.close()


def test_a_phone_scrolls_down_only_and_its_charts_can_be_read(phone):
    width, shown = phone.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert width <= shown == 390
    letters = phone.page.evaluate(
        """() => [...document.querySelectorAll("svg.chart text")].map(
            one => 12 * one.getBoundingClientRect().height / one.getBBox().height)"""
    )
    upright = [size for size in letters if size < 20]  # a turned axis title has its width for a height
    assert min(upright) > 9
    scrollable = phone.page.evaluate(
        """() => [...document.querySelectorAll(".scroll")].every(one => one.clientWidth <= 390)"""
    )
    assert scrollable


def test_folded_tables_unfold_and_are_there_on_paper(browser, report):
    page = visit(browser, report, WIDE).page
    table = page.query_selector("details.more table")
    assert table is not None and not table.is_visible()
    page.click("details.more summary")
    assert table.is_visible()
    page.click("details.more summary")
    page.emulate_media(media="print")
    box = table.bounding_box()
    assert box is not None and box["height"] > 20
    page.context.close()
