"""The page at /, in a real browser."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from in_process import changed_bundle
from playwright.sync_api import Browser, Locator, Page
from running import Running, running

SLOW_MS = 180_000
KEY = "0123456789abcdef"
LONG = "a vector " * 600  # 1202 tokens, of which 512 fit


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1100, "height": 1400})
    opened.set_default_timeout(SLOW_MS)
    yield opened
    opened.close()


@pytest.fixture
def complaints(page: Page) -> list[str]:
    """What the browser's console says of errors."""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    return found


def compare(page: Page, query: str, passages: list[str]) -> None:
    page.get_by_label("Query").fill(query)
    page.get_by_label("Passages").fill("\n".join(passages))
    page.get_by_role("button", name="Compare").click()
    page.locator("#go:enabled").wait_for()
    page.locator("[data-passage]").first.wait_for()


def scores(page: Page, head: str) -> list[float]:
    """As shown, in the order in which passages stand."""
    return [float(text) for text in page.locator(f"[data-score={head}]").all_inner_texts()]


def open_map(card: Locator) -> Locator:
    card.locator("summary").click()
    card.locator(".heat").wait_for()
    return card.locator(".heat")


def answer_of(line: str, language: str, folder: Path) -> Any:
    """What a program gets that is copied from the page and run as it stands."""
    if language == "Python":
        command = [sys.executable, "-c", f"{line}\nimport json; print(json.dumps(answer))"]
    else:
        command = ["sh", "-c", line]
    env = {"M3_API_KEY": KEY, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env=env)
    return json.loads(done.stdout)


def test_scores_words_and_alignment_are_those_of_the_encoder(server, encoder, page, complaints):
    asked = []
    page.on("request", lambda sent: asked.append(sent.url))
    page.goto(server.url)
    query = "a cat 😀 sat"
    passages = ["the cat sat there", "القطة تجلس <b>", "猫坐在那里。"]
    compare(page, query, [*passages, "", ""])

    expected = encoder.compute_score([(query, passage) for passage in passages])
    order = sorted(range(3), key=lambda i: -expected["colbert+sparse+dense"][i])
    shown = {"hybrid": "colbert+sparse+dense", "dense": "dense", "sparse": "sparse", "colbert": "colbert"}
    for head, key in shown.items():
        assert scores(page, head) == pytest.approx([expected[key][i] for i in order], abs=2e-4)
    texts = page.locator(".text").all_inner_texts()
    assert texts == [query, *(passages[i] for i in order)]

    cat = page.locator("[data-passage]").nth(order.index(0))
    assert cat.locator("mark.shared").count() > 0
    open_map(cat)
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
    compare(page, query, passages)

    cards = [page.locator("[data-passage]").filter(has_text=passage[:9]) for passage in passages]
    pieces = cards[0].locator(".text").evaluate("line => Array.from(line.childNodes, node => node.textContent)")
    assert "".join(pieces) == passages[0]
    assert all(any(sign in piece for piece in pieces) for sign in (family, "पें", "e\u0301"))
    directions = [card.locator(".text").evaluate("line => getComputedStyle(line).direction") for card in cards]
    assert directions == ["ltr", "rtl", "ltr", "ltr"]
    labels = open_map(cards[2]).locator("tbody th").all_inner_texts()
    assert labels == ["a", "▁", "c", "a", "t", "▁", "😀", "▁", "s", "a", "t", "</s>"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_what_was_cut_and_where(server, encoder, page, complaints):
    page.goto(server.url)
    family = "👨\u200d👩\u200d👧\u200d👦 "
    passages = ["a short vector", LONG + "end", family * 400, "短い文。" * 400]
    compare(page, LONG, passages)

    outcome = page.locator("#outcome")
    assert outcome.inner_text().endswith("and cut: the query, passage 2, passage 3, passage 4.")
    articles = {article.locator("h2").inner_text(): article for article in page.locator("article").all()}
    assert articles["Passage 1"].locator(".cut, .beyond").count() == 0
    for title, text in zip(["Query", "Passage 2", "Passage 3", "Passage 4"], [LONG, *passages[1:]], strict=True):
        article = articles[title]
        pieces = encoder.tokenizer.pieces(text)
        assert f"512 of this text's {len(pieces)} tokens" in article.locator(".cut").inner_text()
        # <s>, 510 tokens, </s>: the first that is left out
        beyond = article.locator(".beyond").text_content()
        assert text.endswith(beyond) and abs(len(text) - len(beyond) - pieces[511].start) <= len(family)
        assert article.locator(".text").text_content() == text
        if text.startswith(LONG):
            assert article.locator("mark").count() > 0
        assert article.locator(".beyond mark").count() == 0
    long = articles["Passage 2"]
    assert not long.locator(".beyond").evaluate("it => it.getBoundingClientRect().top < innerHeight / 2")
    long.get_by_role("button", name="Show where").click()
    assert long.locator(".beyond").evaluate("it => it.getBoundingClientRect().top < innerHeight / 2")

    assert open_map(articles["Passage 1"]).locator("tbody th").all_text_contents()[510:] == ["</s>"]
    assert "511 by 511 tokens is too large for this page" in open_map(long).inner_text()
    compare(page, "a vector", [LONG])
    assert outcome.inner_text().endswith("and cut: passage 1.")
    labels = open_map(page.locator("[data-passage]")).locator("thead th").all_text_contents()
    assert (len(labels), labels[-1]) == (512, "</s>")
    assert complaints == []


def test_maps_stay_open_and_labelled(server, page, complaints):
    """While weights change and passages change places; a wide map keeps its rows' labels and a bar to scroll it."""
    page.goto(server.url)
    compare(page, "a vector is a model", ["a cat sat there", "a vector " * 60, "what is a model?", "四つ目の文"])
    cards = {card.locator("h2").inner_text(): card for card in page.locator("[data-passage]").all()}
    titles = page.locator("[data-passage] h2")
    before = titles.all_inner_texts()
    wide = page.locator("[data-passage]").filter(has_text="a vector a vector")
    for card in page.locator("[data-passage]").all():
        open_map(card)
    heat = wide.locator(".heat")
    assert heat.evaluate("map => map.scrollWidth > map.clientWidth")
    heat.evaluate("map => map.scrollTo(200, 0)")
    edges = "map => [map, map.querySelector('tbody th')].map(it => it.getBoundingClientRect().left)"
    assert heat.evaluate(edges) == pytest.approx([heat.bounding_box()["x"]] * 2, abs=5)
    assert heat.evaluate("map => map.offsetHeight - map.clientHeight") > 5  # the bar takes room: it does not hide
    heat.focus()
    page.keyboard.press("ArrowRight")
    assert heat.get_attribute("aria-label") == "ColBERT alignment, Passage 2"

    orders = set()
    for weights in ("100", "010", "001", "111"):
        for head, weight in zip(("dense", "sparse", "colbert"), weights, strict=True):
            page.locator(f"#{head}").fill(weight)
        orders.add(tuple(titles.all_inner_texts()))
        hybrid = scores(page, "hybrid")
        assert hybrid == sorted(hybrid, reverse=True)
        assert page.locator("details[open] .heat:visible tbody th").count() > 0
        assert page.locator("[data-passage] details[open] .heat:visible").count() == 4
        assert heat.evaluate("map => map.scrollLeft") >= 200
    assert len(orders) > 1
    assert titles.all_inner_texts() == before
    assert len(cards) == 4

    for head in ("dense", "sparse", "colbert"):
        page.locator(f"#{head}").fill("0")
    assert page.locator("[data-score=hybrid]").all_inner_texts() == ["–"] * 4
    assert complaints == []


@pytest.mark.parametrize("passages", [["", " "], ["a"] * 40, ["x" * 300_000]], ids=["none", "too-many", "too-long"])
def test_no_results_stay_under_an_error(server, page, passages):
    page.goto(server.url)
    compare(page, "a cat", ["the cat sat there"])
    page.get_by_label("Passages").fill("\n".join(passages))
    page.get_by_role("button", name="Compare").click()
    page.locator("#problem:not(:empty)").wait_for()
    assert page.locator("article").count() == 0
    assert page.locator("#outcome").inner_text() == ""
    assert not page.locator("#legend").is_visible()
    assert not page.locator("#programs").is_visible()
    compare(page, "a cat", ["the cat sat there"])
    assert page.locator("#problem").text_content() == ""


def test_an_answer_of_something_else_is_a_problem_in_words(server, page):
    """A proxy's page, and a server that is gone."""
    page.goto(server.url)
    page.route("**/m3/encode", lambda route: route.fulfill(status=502, body="<html>Bad Gateway</html>"))
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("/m3/encode answered 502 Bad Gateway, and not in JSON.").wait_for()
    page.route("**/m3/encode", lambda route: route.abort())
    page.get_by_role("button", name="Compare").click()
    page.get_by_text(f"There was no answer from {server.url}/m3/encode").wait_for()


def check_lines(page: Page, folder: Path) -> None:
    """Every line for programs gives what the page shows."""
    page.get_by_text("The same from a program").click()
    lines = dict(
        zip(
            page.locator("figcaption").evaluate_all("all => all.map(one => one.firstChild.textContent)"),
            page.locator("pre").all_text_contents(),
            strict=True,
        )
    )
    hybrid = "hybrid" if page.locator("[data-score=hybrid]").count() else "dense"
    for title, line in lines.items():
        answer = answer_of(line, title.split(", ")[1], folder)
        if "scores" in title:
            assert [rank["score"] for rank in answer] == pytest.approx(scores(page, hybrid), abs=1e-4)
            names = page.locator("[data-passage] h2").all_inner_texts()
            assert [f"Passage {rank['index'] + 1}" for rank in answer] == names
        else:
            assert len(answer["dense_vecs"]) == 1 + page.locator("[data-passage]").count()
    assert {title.split(", ")[1] for title in lines} == {"curl", "Python"}
    assert {"scores" in title for title in lines} == {True, False}


def test_lines_for_programs_give_what_is_shown(server: Running, page, tmp_path, complaints):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(server.url)
    compare(page, 'it\'s a "cat" 😀 \\ $HOME `id`', ["the cat's True \u2028 mat", "'; echo null", LONG, "-d @x"])
    page.locator("#sparse").fill("0.3")
    page.locator("#dense").fill("0")
    check_lines(page, tmp_path)
    for button in page.get_by_role("button", name="Copy: ").all():
        button.click()
        figure = button.locator("xpath=ancestor::figure")
        figure.get_by_text("Copied.").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == figure.locator("pre").text_content()
    for head in ("sparse", "colbert"):
        page.locator(f"#{head}").fill("0")
    assert not page.get_by_text("hybrid scores").count()  # there are none, and the server would refuse
    assert complaints == []


def test_a_dense_only_bundle(tiny_bundle: Path, tmp_path: Path, page, complaints):
    def only_dense(manifest: dict[str, Any]) -> None:
        manifest["heads"] = ["dense"]
        manifest["geometry"]["colbert_dim"] = None
        for parity in manifest["parity"].values():
            parity.update(sparse=None, colbert=None)

    bundle = changed_bundle(tiny_bundle, tmp_path / "bundle", change=only_dense)
    with running(bundle, tmp_path, "--variant", "onnx-fp32") as server:
        page.goto(server.url)
        compare(page, "a cat", ["the cat sat there", LONG])
        assert len(scores(page, "dense")) == 2
        assert page.locator("[data-score]").count() == 2
        assert page.locator("input[type=range]:visible").count() == 0
        assert page.locator("mark, [data-passage] details").count() == 0
        assert not page.locator("#legend").is_visible()
        assert page.locator(".beyond").count() == 1
        check_lines(page, tmp_path)
        assert complaints == []


def test_keys_are_asked_for_behind_a_prefix_too(tiny_bundle: Path, tmp_path: Path, page):
    keys = tmp_path / "keys.txt"
    keys.write_text(f"{KEY}\n")
    words = ("--variant", "onnx-fp32", "--api-key-file", str(keys), "--root-path", "/search/m3")
    with running(tiny_bundle, tmp_path, *words) as server:
        page.goto(f"{server.url}/search/m3")
        page.get_by_role("button", name="Compare").click()
        page.get_by_text("a key is needed").wait_for()
        page.get_by_label("API key").fill(KEY)
        page.get_by_role("button", name="Compare").click()
        page.locator("[data-passage]").first.wait_for()
        assert page.locator("#problem").text_content() == ""
        check_lines(page, tmp_path)
        lines = " ".join(page.locator("pre").all_text_contents())
        assert f"{server.url}/search/m3/rerank" in lines and KEY not in lines


def test_no_ui(tiny_bundle: Path, tmp_path: Path):
    with running(tiny_bundle, tmp_path, "--variant", "onnx-fp32", "--no-ui") as server:
        health = server.client.get("/")
        assert (health.status_code, health.text) == (200, server.client.get("/health").text)
        assert server.client.post("/", json={"inputs": "a"}).status_code == 200
