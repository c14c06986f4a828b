"""The page at /, in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from running import running

SLOW_MS = 180_000


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1100, "height": 1400})
    opened.set_default_timeout(SLOW_MS)
    yield opened
    opened.close()


def scores(page: Page, head: str) -> list[float]:
    """As shown, in the order in which passages stand."""
    return [float(text) for text in page.locator(f"[data-score={head}]").all_inner_texts()]


def test_scores_words_and_alignment_are_those_of_the_encoder(server, encoder, page):
    complaints, asked = [], []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda sent: asked.append(sent.url))
    page.goto(server.url)
    query = "a cat 😀 sat"
    passages = ["the cat sat there", "القطة تجلس <b>", "猫坐在那里。"]
    page.get_by_label("Query").fill(query)
    page.get_by_label("Passages").fill("\n".join(passages) + "\n\n")
    page.get_by_role("button", name="Compare").click()
    page.locator("[data-passage]").first.wait_for()

    expected = encoder.compute_score([(query, passage) for passage in passages])
    order = sorted(range(3), key=lambda i: -expected["colbert+sparse+dense"][i])
    shown = {"hybrid": "colbert+sparse+dense", "dense": "dense", "sparse": "sparse", "colbert": "colbert"}
    for head, key in shown.items():
        assert scores(page, head) == pytest.approx([expected[key][i] for i in order], abs=2e-4)
    texts = page.locator(".text").all_inner_texts()
    assert texts == [query, *(passages[i] for i in order)]

    cat = page.locator("[data-passage]").nth(order.index(0))
    assert cat.locator("mark.shared").count() > 0
    cat.locator("summary").click()
    counts = encoder.encode([query, passages[0]]).token_counts
    assert cat.locator("tbody tr").count() == counts[0] - 1
    assert cat.locator("tbody td").count() == (counts[0] - 1) * (counts[1] - 1)

    page.locator("#colbert").fill("0")
    page.locator("#sparse").fill("0")
    assert scores(page, "hybrid") == pytest.approx(sorted(expected["dense"], reverse=True), abs=2e-4)
    assert complaints == []
    assert all(url.startswith(server.url) for url in asked)


def test_every_script_is_shown_as_it_is_written(server, page):
    """Signs made of several tokens stay whole, right-to-left texts run so, and nothing is wider than a telephone."""
    page.set_viewport_size({"width": 375, "height": 700})
    page.goto(server.url)
    family = "👨\u200d👩\u200d👧\u200d👦"
    query, passages = (
        "a cat 😀 sat",
        [f"यह पें {family} e\u0301te\u0301", "القطة تجلس هنا 123", "猫坐在那里。" * 40, "x" * 300],
    )
    page.get_by_label("Query").fill(query)
    page.get_by_label("Passages").fill("\n".join(passages))
    page.get_by_role("button", name="Compare").click()
    page.locator("[data-passage]").first.wait_for()

    cards = [page.locator("[data-passage]").filter(has_text=passage[:9]) for passage in passages]
    pieces = cards[0].locator(".text").evaluate("line => Array.from(line.childNodes, node => node.textContent)")
    assert "".join(pieces) == passages[0]
    assert all(any(sign in piece for piece in pieces) for sign in (family, "पें", "e\u0301"))
    directions = [card.locator(".text").evaluate("line => getComputedStyle(line).direction") for card in cards]
    assert directions == ["ltr", "rtl", "ltr", "ltr"]
    cards[2].locator("summary").click()
    labels = cards[2].locator("tbody th").all_inner_texts()
    assert labels == ["a", "▁", "c", "a", "t", "▁", "😀", "▁", "s", "a", "t", "</s>"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_problems_are_shown_and_keys_asked_for(tiny_bundle: Path, tmp_path: Path, page):
    keys = tmp_path / "keys.txt"
    keys.write_text("0123456789abcdef\n")
    with running(tiny_bundle, tmp_path, "--variant", "onnx-fp32", "--api-key-file", str(keys)) as server:
        page.goto(server.url)
        page.get_by_role("button", name="Compare").click()
        page.get_by_text("a key is needed").wait_for()
        page.get_by_label("API key").fill("0123456789abcdef")
        page.get_by_role("button", name="Compare").click()
        page.locator("[data-passage]").first.wait_for()
        assert page.locator("#problem").text_content() == ""


def test_no_ui(tiny_bundle: Path, tmp_path: Path):
    with running(tiny_bundle, tmp_path, "--variant", "onnx-fp32", "--no-ui") as server:
        health = server.client.get("/")
        assert (health.status_code, health.text) == (200, server.client.get("/health").text)
        assert server.client.post("/", json={"inputs": "a"}).status_code == 200
