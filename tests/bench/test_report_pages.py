"""`m3-bench report`: what is on the page, and which files it leaves alone."""

import json
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from stored import samples

from m3_bench import documents
from m3_bench.cli import main
from m3_bench.documents import Comparison, Load, Round, Run, Scenario, ScenarioRun, Stage
from m3_bench.errors import DocumentError
from m3_bench.report.build import build_page
from m3_bench.report.inputs import read_inputs
from m3_bench.report.page import Page, Table, html

SVG = "{http://www.w3.org/2000/svg}"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


class Parts(HTMLParser):
    """Addresses, ids, and what would load something."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"]] if values.get("id") else []
        self.links += [values.get("href") or ""] if tag == "a" else []
        if tag in {"script", "link", "img", "iframe", "object", "embed", "source", "video"}:
            self.loads.append(tag)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What compare makes of the stored run and reference."""
    folder = tmp_path_factory.mktemp("compared")
    written = samples.write_both(folder)
    words = ("compare", written.reference, written.run, "--price", "cpu=0.34/h", "gpu=1.10/h", "--quiet")
    assert main([*map(str, words), "-o", str(folder / "comparison.json")]) == 0
    return folder / "comparison.json"


@pytest.fixture(scope="module")
def page(comparison: Path) -> Page:
    """Everything there is."""
    return page_of(comparison, *(samples.HERE / f"{name}.json" for name in ("roofline", "retrieval", "margins")))


@pytest.fixture(scope="module")
def text(page: Page) -> str:
    """The same as HTML."""
    return html(page)


def test_prices_in_two_currencies_are_refused(comparison: Path, tmp_path: Path):
    found = documents.read_as(Comparison, comparison)
    documents.write(replace(found, prices=replace(found.prices, currency="EUR")), tmp_path / "euros.json")
    with pytest.raises(DocumentError, match="prices are in EUR and USD; compare again with one --currency"):
        read_inputs([comparison, tmp_path / "euros.json"])


def page_of(*paths: Path) -> Page:
    return build_page(read_inputs(paths))


def tiles_of(page: Page) -> dict[str, str]:
    return {tile.label: tile.value for tile in page.tiles}


def table_of(page: Page, caption: str) -> Table:
    return next(table for section in page.sections for table in section.tables if table.caption.startswith(caption))


def column(table: Table, head: str) -> dict[str, str]:
    """The texts of a column, by the first word of their row."""
    place = table.head.index(head)
    return {row[0].text.splitlines()[0]: row[place].text for row in table.rows}


def test_tiles_are_the_figures_of_the_documents(comparison, page):
    found = documents.read_as(Comparison, comparison)
    tiles, ours = tiles_of(page), found.runs[0].contenders[0]
    assert page.lead == "openvino-int8 on Example CPU 8-Core with 8 threads, beside PyTorch fp16 on Example GPU"
    p50_ms = sorted(s for r in ours.scenarios[0].rounds for s in r.seconds)
    assert tiles["16-token text, p50"] == f"{(p50_ms[49] + p50_ms[50]) * 500:.1f} ms"
    assert "for PyTorch fp16 on Example GPU" in page.tiles[0].note
    speed = sorted(32 * 128 / r.seconds[0] for r in ours.scenarios[8].rounds)[2]
    assert float(tiles["tokens/s, 32 texts of 128 tokens"].replace(" ", "")) == float(f"{speed:.3g}")
    assert tiles["per million tokens"] == f"USD {0.34 / (speed * 3600) * 1e6:.3g}"
    dense = next(one.dense for one in found.parity if one.contender == "openvino-int8")
    assert tiles["lowest dense cosine"] == f"{int(dense.cosine_min * 1e4) / 1e4:.4f}"


def test_without_reference_price_or_vectors_nothing_is_made_up():
    page = page_of(samples.HERE / "run.json")
    labels = ["16-token text, p50", "tokens/s, 32 texts of 128 tokens", "memory, 32 texts of 128 tokens"]
    assert [tile.label for tile in page.tiles] == [*labels, "tokens/s ÷ fastest other"]
    shown = " ".join(f"{tile.value} {tile.note}" for tile in page.tiles)
    for missing in ("against", "cosine", "GPU", "None", "nan"):
        assert missing not in shown
    assert page.title == "example-m3 on CPU"
    assert [section.anchor for section in page.sections] == ["speed", "facts"]


def test_the_page_may_call_the_model_by_another_name_than_its_folder():
    page = build_page(read_inputs([samples.HERE / "run.json"]), "my-finetune")
    assert page.title == "my-finetune on CPU"
    assert "example-m3" not in html(page)


@pytest.mark.parametrize("name", ["roofline", "retrieval", "margins"])
def test_a_document_alone_is_a_page(name):
    page = page_of(samples.HERE / f"{name}.json")
    assert page.tiles == ()
    assert [section.anchor for section in page.sections] == ["ceiling" if name == "roofline" else name]
    assert page.sections[0].tables
    assert html(page)


def test_every_committed_result_is_read_and_drawn():
    comparisons = [RESULTS / "mini-m3" / "comparison.json", RESULTS / "synthetic-xlmr-large" / "comparison.json"]
    others = sorted({*RESULTS.rglob("*.json")} - {*comparisons})
    kinds = {documents.read(path).kind for path in others}
    assert kinds >= {"run", "roofline", "retrieval", "margins"}
    smallest = {documents.read(path).kind: path for path in sorted(others, key=lambda one: -one.stat().st_size)}
    for path in (*comparisons, *smallest.values()):
        assert page_of(path).sections, path


def test_a_server_under_load_is_a_table_of_its_stages(tmp_path):
    answers = tuple(0.01 * (n + 1) for n in range(100))
    stages = (
        Stage(4, 0.0, 2.0, answers, (0.001, 0.001), ("1", "1"), {"reset": 1}, 200, 9000, 0.0, 0.1, (), None),
        Stage(0, 50.0, 2.0, (), (), (), {}, 0, 0, 0.0, 0.1, (), None),
    )
    machine = samples.stored("run").machine
    documents.write(Load(machine, "http://127.0.0.1:8080", ("openai",), 2, 20, stages), tmp_path / "load.json")
    table = table_of(page_of(tmp_path / "load.json"), "http")
    rows = [dict(zip(table.head, (cell.text for cell in row), strict=True)) for row in table.rows]
    assert [rows[0][head] for head in ("", "answers", "answers/s", "texts/s")] == ["4 clients", "100", "50.0", "100"]
    assert rows[0]["tokens/s"] == "4 500"
    assert (rows[0]["p50"], rows[0]["p95"], rows[0]["p99"]) == ("505 ms", "950 ms", "990 ms")
    assert (rows[0]["refusals"], rows[0]["errors"]) == ("2", "1 × reset")
    assert (rows[1][""], rows[1]["p50"], rows[1]["answers"], rows[1]["errors"]) == ("50.0 requests/s", "–", "0", "0")


def test_a_shown_throughput_is_the_median_of_the_rounds(comparison, page):
    found = documents.read_as(Comparison, comparison)
    table = table_of(page, "p50 of a call")
    row = next(row for row in table.rows if row[0].text == "16 texts of 128 tokens")
    contenders = [*found.reference.contenders, *found.runs[0].contenders]
    for cell, contender in zip(row[1:], contenders, strict=True):
        rounds = next(one.rounds for one in contender.scenarios if one.scenario == "batch-16")
        speeds = sorted(2048 / one.seconds[0] for one in rounds)
        shown = cell.text.splitlines()[1].removesuffix(" tokens/s")
        assert float(shown.replace(" ", "")) == pytest.approx(speeds[2], rel=0.006)


def test_the_page_needs_nothing_but_itself(text):
    parts = Parts()
    parts.feed(text)
    assert parts.loads == []
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", text)
    assert all(href.startswith("#") for href in parts.links)
    assert len(parts.ids) == len(set(parts.ids))
    assert all(href[1:] in parts.ids for href in parts.links)


def test_charts_have_titles_descriptions_axes_and_the_figures_in_words(page):
    charts = [chart for section in page.sections for chart in section.charts]
    assert [chart.title for chart in charts] == [
        "Latency by length", "Throughput by batch", "Throughput by callers", "Throughput: 32 texts of 128 tokens",
        "Dense vectors: distance to the reference", "Sparse weights: distance to the reference",
        "ColBERT vectors: distance to the reference", "nDCG@10 on example-set",
    ]  # fmt: skip
    for chart in charts:
        root = ET.fromstring(chart.svg)
        assert root.get("role") == "img"
        assert root.find(f"{SVG}title").text == chart.title
        assert root.find(f"{SVG}desc").text == chart.caption
        assert all("fill: var(--" in (one.get("style") or "") for one in root.iter(f"{SVG}text"))


def test_a_chart_puts_larger_values_further_up_and_right(tmp_path):
    run = samples.stored("run")
    scenarios = tuple(Scenario(f"{n}", f"{n} texts", (100,) * n, ("dense",), calls=1) for n in (1, 2, 4))
    rounds = (Round((10.0,), 10.0, 1.0, 1, 1),) * 3  # 10, 20 and 40 tokens/s
    measured = tuple(ScenarioRun(one.name, 1.0, 1.0, rounds) for one in scenarios)
    contenders = (replace(run.contenders[0], scenarios=measured),)
    documents.write(replace(run, scenarios=scenarios, contenders=contenders), tmp_path / "run.json")
    charts = {chart.title: chart for section in page_of(tmp_path / "run.json").sections for chart in section.charts}
    uses = ET.fromstring(charts["Throughput by batch"].svg).iter(f"{SVG}use")
    marks = {(float(one.get("x")), float(one.get("y"))) for one in uses}
    (x1, y1), (x2, y2), (x3, y3) = sorted(marks)[-3:]
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)  # a doubling is a doubling
    assert y1 > y2 > y3
    assert (y1 - y2) * 2 == pytest.approx(y2 - y3, abs=0.2)


def test_noise_is_said_and_marked(page):
    assert any(remark.startswith("onnx-int8, 32 texts of 128 tokens: tokens/s") for remark in page.remarks)
    row = next(row for row in table_of(page, "p50 of a call").rows if row[0].text == "32 texts of 128 tokens")
    assert [cell.is_noisy for cell in row[1:]] == [False, False, True, False, False, False]


def test_a_doubt_of_many_figures_is_said_once(tmp_path):
    run = samples.stored("run")
    contenders = tuple(
        replace(one, scenarios=tuple(replace(s, rounds=s.rounds[:1]) for s in one.scenarios)) for one in run.contenders
    )
    documents.write(replace(run, contenders=contenders), tmp_path / "run.json")
    (remark,) = page_of(tmp_path / "run.json").remarks
    assert remark.startswith(
        "openvino-int8, one text of 16 tokens; openvino-int8, one text of 128 tokens and 57 more: 1 of at least 3"
    )


def test_what_could_not_be_measured_is_said(page):
    gap = "Not measured: PyTorch fp32, length-8192: the worker was killed: out of memory?"
    assert gap in page.sections[0].notes


def test_a_run_within_a_comparison_is_shown_once(comparison):
    run = comparison.with_name("run.json")
    assert len(read_inputs([comparison, run]).figures.entries) == len(read_inputs([comparison]).figures.entries) == 6
    twice = read_inputs([comparison, run, comparison])
    assert [file.path.name for file in twice.files] == ["comparison.json", "run.json"]


def test_runs_of_two_machines_or_checkpoints_are_refused(tmp_path):
    run = samples.stored("run")
    documents.write(replace(run, machine=replace(run.machine, logical_cpus=4)), tmp_path / "laptop.json")
    with pytest.raises(DocumentError, match=r"laptop\.json' are of different machines: logical CPUs 16 and 4"):
        read_inputs([samples.HERE / "run.json", tmp_path / "laptop.json"])
    documents.write(replace(run, model=replace(run.model, weights_sha256="00" * 32)), tmp_path / "other.json")
    with pytest.raises(DocumentError, match=r"other\.json' is of another checkpoint .* make a report of each"):
        read_inputs([samples.HERE / "run.json", tmp_path / "other.json"])


def test_the_share_of_the_ceiling_is_of_the_right_precision(comparison, page):
    shares = column(table_of(page, "16 texts of 128 tokens"), "of the ceiling")
    # 1650 tokens/s × 0.604 GFLOP are 1 TFLOP/s, of 1.6
    assert shares["openvino-int8"] == "62 %"
    speed = float(column(table_of(page, "16 texts of 128 tokens"), "per core")["onnx-fp32"].replace(" ", "")) * 8
    assert float(shares["onnx-fp32"].removesuffix(" %")) == pytest.approx(speed * 603979776 / 5.05e11 * 100, rel=0.05)
    assert shares["PyTorch fp16 on Example GPU"] == "–"
    other = replace(samples.stored("run").machine, cpu="another")
    path = comparison.with_name("other-roofline.json")
    documents.write(replace(documents.read(samples.HERE / "roofline.json"), machine=other), path)
    alone = page_of(comparison, path)
    assert "of the ceiling" not in table_of(alone, "16 texts of 128 tokens").head
    assert "No run was on another with 8 threads" in next(s for s in alone.sections if s.anchor == "ceiling").notes[0]


def test_names_cannot_become_markup(tmp_path):
    evil = '<script>alert("1")</script>|`[x](javascript:1)'
    run = samples.stored("run")
    scenarios = tuple(replace(one, title=evil) for one in run.scenarios)
    contenders = tuple(replace(one, name=f"{one.name} {evil}") for one in run.contenders)
    machine = replace(run.machine, cpu=evil)
    path = tmp_path / 'a"b<i>.json'
    documents.write(replace(run, scenarios=scenarios, contenders=contenders, machine=machine), path)
    page = page_of(path)
    shown = html(page)
    assert "<script" not in shown
    assert '"b<i>' not in shown
    for chart in (chart for section in page.sections for chart in section.charts):
        ET.fromstring(chart.svg)


def report(*words) -> int:
    return main(["report", *map(str, words), "--quiet"])


def test_the_report_is_one_file_the_same_each_time_and_replaced_only_by_force(comparison, text, tmp_path, capsys):
    out = tmp_path / "report.html"
    others = [samples.HERE / f"{name}.json" for name in ("roofline", "retrieval", "margins")]
    assert report(comparison, *others, "-o", out) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.read_text() == text
    assert list(tmp_path.iterdir()) == [out]
    out.write_text("mine")
    assert report(comparison, "-o", out) == 2
    assert "exists; choose another file, or pass --force to replace it" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert report(samples.HERE / "roofline.json", "-o", out, "--force") == 0
    assert "Ceilings of" in out.read_text()


def test_a_folder_is_refused_since_a_report_is_a_file(comparison, tmp_path, capsys):
    assert report(comparison, "-o", tmp_path / "report") == 2
    assert "a report is one file now" in capsys.readouterr().err
    assert report(comparison, "-o", comparison, "--force") == 2
    assert comparison.is_file()


def test_a_missing_library_is_named_with_the_extra_that_brings_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert report(samples.HERE / "roofline.json", "-o", tmp_path / "report.html") == 2
    assert 'jinja2 is not installed; this command needs: pip install "m3-runtime[bench]"' in capsys.readouterr().err


def test_a_bad_file_leaves_the_old_report(comparison, tmp_path, capsys):
    out, bars, newer = tmp_path / "report.html", tmp_path / "bars.json", tmp_path / "newer.json"
    out.write_text("old")
    bars.write_text('{"schema_version": 1, "machine": {}, "rows": []}')
    assert report(comparison, bars, "-o", out, "--force") == 2
    assert "bars.json is not a document of m3-bench" in capsys.readouterr().err
    newer.write_text(json.dumps(json.loads(comparison.read_text()) | {"schema_version": 9}))
    assert report(newer, "-o", out, "--force") == 2
    assert "schema version 9, this release reads 1" in capsys.readouterr().err
    assert report(tmp_path / "none.json", "-o", out, "--force") == 2
    assert "none.json" in capsys.readouterr().err
    assert out.read_text() == "old"


def test_a_run_of_nothing_is_a_page_too(tmp_path):
    run = samples.stored("run")
    empty = tuple(replace(one, scenarios=()) for one in run.contenders)
    documents.write(replace(run, contenders=empty), tmp_path / "run.json")
    assert [section.anchor for section in page_of(tmp_path / "run.json").sections] == ["facts"]
    documents.write(replace(run, contenders=()), tmp_path / "none.json")
    assert html(page_of(tmp_path / "none.json"))
    assert isinstance(documents.read(tmp_path / "none.json"), Run)
