"""`m3-bench report`: what is on the page, where its numbers come from, and which folders it leaves alone."""

import json
import math
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from stored import samples

from m3_bench import documents
from m3_bench.cli import main
from m3_bench.documents import Comparison, Load, Retrieval, Round, Run, Scenario, ScenarioRun, Stage
from m3_bench.errors import DocumentError
from m3_bench.report.build import build_page
from m3_bench.report.inputs import read_inputs
from m3_bench.report.page import Page, Tile
from m3_bench.report.render import html, markdown

SVG = "{http://www.w3.org/2000/svg}"


class Links(HTMLParser):
    """Links with their words and titles, and what would load something."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[tuple[str, str, str]] = []
        self.loads: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"]] if values.get("id") else []
        if tag == "a":
            self.links.append((values.get("href") or "", "", values.get("title") or ""))
        if tag in {"script", "link", "img", "iframe", "object", "embed", "source", "video"}:
            self.loads.append(tag)

    def handle_data(self, data: str) -> None:
        if self.links and not self.links[-1][1]:
            self.links[-1] = (self.links[-1][0], data, self.links[-1][2])


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What compare makes of the stored run and reference."""
    folder = tmp_path_factory.mktemp("compared")
    written = samples.write_both(folder)
    price = ("--price", "cpu=0.34/h", "gpu=1.10/h")
    asked = [
        "compare",
        str(written.reference),
        str(written.run),
        *price,
        "--quiet",
        "-o",
        str(folder / "comparison.json"),
    ]
    assert main(asked) == 0
    return folder / "comparison.json"


def page_of(*paths: Path) -> Page:
    return build_page(read_inputs(paths))


def tiles_of(page: Page) -> dict[str, Tile]:
    return {tile.label: tile for tile in page.tiles}


def everything(comparison: Path) -> list[Path]:
    return [comparison, *(samples.HERE / f"{name}.json" for name in ("roofline", "retrieval", "margins"))]


def pointed_at(data: object, pointer: str) -> object:
    """What a JSON pointer leads to."""
    for key in pointer.removeprefix("/").split("/") if pointer else []:
        data = data[int(key)] if isinstance(data, list) else data[key.replace("~1", "/").replace("~0", "~")]
    return data


def test_tiles_are_the_figures_of_the_documents(comparison):
    found, page = documents.read_as(Comparison, comparison), page_of(comparison)
    tiles, ours = tiles_of(page), found.runs[0].contenders[0]
    assert page.lead == "openvino-int8 on Example CPU 8-Core with 8 threads, beside PyTorch fp16 on Example GPU"
    p50_ms = sorted(s for r in ours.scenarios[0].rounds for s in r.seconds)
    assert tiles["16-token text, p50"].value.text == f"{(p50_ms[49] + p50_ms[50]) * 500:.1f} ms"
    assert "for PyTorch fp16 on Example GPU" in tiles["16-token text, p50"].notes[-1].text
    speed = sorted(32 * 128 / r.seconds[0] for r in ours.scenarios[8].rounds)[2]
    shown = tiles["tokens/s, 32 texts of 128 tokens"].value.text
    assert float(shown.replace(" ", "")) == float(f"{speed:.3g}")
    assert tiles["per million tokens"].value.text == f"USD {0.34 / (speed * 3600) * 1e6:.3g}"
    reference = sorted(32 * 128 / r.seconds[0] for r in found.reference.contenders[0].scenarios[8].rounds)[2]
    assert tiles["machines for the reference's tokens/s"].value.text == str(math.ceil(reference / speed))
    dense = next(one.dense for one in found.parity if one.contender == "openvino-int8")
    assert tiles["lowest dense cosine"].value.text == f"{int(dense.cosine_min * 1e4) / 1e4:.4f}"


def test_a_tile_is_the_largest_loss_in_retrieval_of_the_same_weights(comparison, tmp_path):
    path = samples.HERE / "retrieval.json"
    tile = tiles_of(page_of(comparison, path))["loss of nDCG@10 against FP32"]
    found = documents.read_as(Retrieval, path)
    means = {(run.variant, run.method): sum(run.metrics["nDCG@10"]) / 60 for run in found.methods}
    methods = [method for variant, method in means if variant == "openvino-int8"]
    losses = {method: means["onnx-fp32", method] - means["openvino-int8", method] for method in methods}
    worst = max(losses, key=losses.get)
    assert tile.value.text == f"+{losses[worst]:.3f}"
    assert tile.notes[0].text.endswith(f"] {worst} on example-set, the highest of 1 dataset")
    other = {bundle: replace(model, weights_sha256="00" * 32) for bundle, model in found.models.items()}
    documents.write(replace(found, models=other), tmp_path / "other.json")
    assert "loss of nDCG@10 against FP32" not in tiles_of(page_of(comparison, tmp_path / "other.json"))


def test_without_reference_price_or_vectors_nothing_is_made_up():
    page = page_of(samples.HERE / "run.json")
    labels = ["16-token text, p50", "tokens/s, 32 texts of 128 tokens", "tokens/s ÷ fastest other"]
    assert [tile.label for tile in page.tiles] == [*labels, "memory, 32 texts of 128 tokens"]
    shown = " ".join(cell.text for tile in page.tiles for cell in (tile.value, *tile.notes))
    for missing in ("against", "cosine", "GPU", "None", "nan"):
        assert missing not in shown
    assert page.title == "example-m3 on CPU"
    assert {section.anchor for section in page.sections} == {"speed", "memory", "facts"}


def test_the_page_may_call_the_model_by_another_name_than_its_folder():
    page = build_page(read_inputs([samples.HERE / "run.json"]), "my-finetune")
    assert page.title == "my-finetune on CPU"
    assert "example-m3" not in html(page)


def test_the_same_documents_give_the_same_page(comparison):
    assert html(page_of(*everything(comparison))) == html(page_of(*everything(comparison)))


@pytest.mark.parametrize("name", ["roofline", "retrieval", "margins"])
def test_a_document_alone_is_a_page(name):
    page = page_of(samples.HERE / f"{name}.json")
    assert page.tiles == ()
    assert [section.anchor for section in page.sections] == ["ceiling" if name == "roofline" else name]
    assert page.sections[0].tables
    assert markdown(page) and html(page)


def test_a_server_under_load_is_a_table_of_its_stages(tmp_path):
    answers = tuple(0.01 * (n + 1) for n in range(100))
    stages = (
        Stage(4, 0.0, 2.0, answers, (0.001, 0.001), ("1", "1"), {"reset": 1}, 200, 9000, 0.0, 0.1, (), None),
        Stage(0, 50.0, 2.0, (), (), (), {}, 0, 0, 0.0, 0.1, (), None),
    )
    machine = samples.stored("run").machine
    documents.write(Load(machine, "http://127.0.0.1:8080", ("openai",), 2, 20, stages), tmp_path / "load.json")
    (section,) = page_of(tmp_path / "load.json").sections
    rows = [[cell.text for cell in row] for row in section.tables[0].rows]
    assert rows[0] == ["4 clients", "50.0", "100", "4 500", "505 ms", "950 ms", "990 ms", "2", "1"]
    assert rows[1] == ["50.0 requests/s", "–", "–", "–", "–", "–", "–", "0", "0"]


def test_every_number_leads_to_its_raw_values(comparison):
    page = page_of(*everything(comparison))
    raw = {file.name: json.loads(file.read_text()) for file in everything(comparison)}
    parser = Links()
    parser.feed(html(page))
    numbers = [(href, title) for href, _, title in parser.links if href.startswith("raw/") and title]
    assert len(numbers) > 500
    for href, title in numbers:
        address = urlsplit(href)
        name, pointer = unquote(address.path).removeprefix("raw/"), unquote(address.fragment)
        assert pointed_at(raw[name], pointer) is not None
        assert title.endswith(f"{name} {pointer}")


def test_no_number_of_a_table_is_without_a_link(comparison):
    for section in page_of(*everything(comparison)).sections:
        for table in section.tables:
            for row in table.rows:
                for cell in row[1:]:
                    if re.fullmatch(r"[−+]?[\d ]*\.?\d+( (ms|s|MB|GB|%|×))?", cell.text):
                        assert cell.place is not None, (table.caption, cell.text)


def test_a_shown_throughput_is_the_median_of_what_its_link_leads_to(comparison):
    page, raw = page_of(comparison), json.loads(comparison.read_text())
    table = next(t for s in page.sections for t in s.tables if t.caption == "Tokens per second")
    row = next(row for row in table.rows if row[0].text == "16 texts of 128 tokens")
    for cell in row[1:]:
        assert cell.place is not None
        speeds = sorted(2048 / one["seconds"][0] for one in pointed_at(raw, cell.place.pointer))
        assert float(cell.text.replace(" ", "")) == pytest.approx(speeds[2], rel=0.006)


def test_the_page_needs_nothing_but_itself(comparison):
    text = html(page_of(*everything(comparison)))
    parser = Links()
    parser.feed(text)
    assert parser.loads == []
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", text)
    assert all(href.startswith(("raw/", "#", "report.md")) for href, _, _ in parser.links)
    assert len(parser.ids) == len(set(parser.ids))
    assert all(href[1:] in parser.ids for href, _, _ in parser.links if href.startswith("#"))


def test_charts_have_titles_descriptions_axes_and_the_figures_in_words(comparison):
    pictures = {p.name: p for s in page_of(*everything(comparison)).sections for p in s.charts}
    assert pictures.keys() == {
        "latency-by-length", "throughput-by-batch", "throughput-by-clients", "throughput", "front", "parity-dense",
        "parity-sparse", "parity-colbert", "cost", "memory-by-length", "retrieval-1",
    }  # fmt: skip
    for picture in pictures.values():
        root = ET.fromstring(picture.svg)
        assert root.get("role") == "img"
        assert root.find(f"{SVG}title").text == picture.title
        assert root.find(f"{SVG}desc").text == picture.caption
        assert all("fill: var(--" in (one.get("style") or "") for one in root.iter(f"{SVG}text"))


def test_a_chart_puts_larger_values_further_up_and_right(tmp_path):
    run = samples.stored("run")
    scenarios = tuple(Scenario(f"{n}", f"{n} texts", (100,) * n, ("dense",), calls=1) for n in (1, 2, 4))
    rounds = (Round((10.0,), (), (), 10.0, 1.0, 1, 1),) * 3  # 10, 20 and 40 tokens/s
    measured = tuple(ScenarioRun(one.name, 1.0, 1.0, rounds) for one in scenarios)
    contenders = (replace(run.contenders[0], scenarios=measured),)
    documents.write(replace(run, scenarios=scenarios, contenders=contenders), tmp_path / "run.json")
    charts = {chart.name: chart for section in page_of(tmp_path / "run.json").sections for chart in section.charts}
    uses = ET.fromstring(charts["throughput-by-batch"].svg).iter(f"{SVG}use")
    marks = {(float(one.get("x")), float(one.get("y"))) for one in uses}
    (x1, y1), (x2, y2), (x3, y3) = sorted(marks)[-3:]
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)  # a doubling is a doubling
    assert y1 > y2 > y3
    assert (y1 - y2) * 2 == pytest.approx(y2 - y3, abs=0.2)


def test_noise_is_said_and_marked(comparison):
    page = page_of(comparison)
    assert any(remark.startswith("onnx-int8, 32 texts of 128 tokens: tokens/s") for remark in page.remarks)
    table = next(t for s in page.sections for t in s.tables if t.caption == "Tokens per second")
    row = next(row for row in table.rows if row[0].text == "32 texts of 128 tokens")
    assert [cell.is_noisy for cell in row[1:]] == [False, False, True, False, False, False]


def test_a_doubt_of_many_figures_is_said_once(tmp_path):
    run = samples.stored("run")
    contenders = tuple(
        replace(one, scenarios=tuple(replace(s, rounds=s.rounds[:1]) for s in one.scenarios)) for one in run.contenders
    )
    documents.write(replace(run, contenders=contenders), tmp_path / "run.json")
    (remark,) = page_of(tmp_path / "run.json").remarks
    assert remark.startswith(
        "openvino-int8, one text of 16 tokens; openvino-int8, one text of 128 tokens and 57 more: 1 round:"
    )


def test_what_could_not_be_measured_is_said(comparison):
    speed = page_of(comparison).sections[0]
    assert speed.notes == ("Not measured: PyTorch fp32, length-8192: the worker was killed: out of memory?",)


def test_a_run_within_a_comparison_is_shown_once(comparison):
    run = comparison.with_name("run.json")
    assert len(read_inputs([comparison, run]).figures.entries) == len(read_inputs([comparison]).figures.entries) == 6
    assert [file.name for file in read_inputs([comparison, run]).files] == ["comparison.json", "run.json"]


def test_runs_of_two_machines_are_named_in_every_column(tmp_path):
    run = samples.stored("run")
    documents.write(replace(run, machine=replace(run.machine, logical_cpus=4)), tmp_path / "laptop.json")
    page = page_of(samples.HERE / "run.json", tmp_path / "laptop.json")
    table = next(t for s in page.sections for t in s.tables if t.caption == "Tokens per second")
    assert all("Example CPU 8-Core (machine " in head for head in table.head[1:])
    assert any("Figures are of 2 machines" in remark for remark in page.remarks)


def test_runs_of_two_checkpoints_are_refused(tmp_path):
    run = samples.stored("run")
    documents.write(replace(run, model=replace(run.model, weights_sha256="00" * 32)), tmp_path / "other.json")
    with pytest.raises(DocumentError, match=r"other\.json' is of another checkpoint .* make a report of each"):
        read_inputs([samples.HERE / "run.json", tmp_path / "other.json"])


def test_the_share_of_the_ceiling_is_of_the_right_precision(comparison):
    page = page_of(*everything(comparison))
    table = next(t for s in page.sections for t in s.tables if t.caption == "Share of the ceiling")
    row = next(row for row in table.rows if row[0].text == "16 texts of 128 tokens")
    shares = {head.splitlines()[0]: cell for head, cell in zip(table.head[1:], row[1:], strict=True)}
    assert shares.keys() == {"openvino-int8", "onnx-int8", "onnx-fp32", "peer int8", "PyTorch fp32"}
    # 1650 tokens/s × 0.604 GFLOP are 1 TFLOP/s, of 1.6
    assert shares["openvino-int8"].text == "62 %"
    assert shares["onnx-fp32"].title.startswith("of 5")  # × 10⁹ FLOP/s in fp32
    other = replace(samples.stored("run").machine, cpu="another")
    roofline = documents.read(samples.HERE / "roofline.json")
    path = comparison.with_name("other-roofline.json")
    documents.write(replace(roofline, machine=other), path)
    section = next(s for s in page_of(comparison, path).sections if s.anchor == "ceiling")
    assert not any(table.caption.startswith("Share") for table in section.tables)
    assert "No run was on the machine" in section.notes[0]


def test_names_cannot_become_markup(tmp_path):
    evil = '<script>alert("1")</script>|`[x](javascript:1)'
    run = samples.stored("run")
    scenarios = tuple(replace(one, title=evil) for one in run.scenarios)
    contenders = tuple(replace(one, name=f"{one.name} {evil}") for one in run.contenders)
    machine = replace(run.machine, cpu=evil)
    path = tmp_path / 'a"b<i>.json'
    documents.write(replace(run, scenarios=scenarios, contenders=contenders, machine=machine), path)
    page = page_of(path)
    text = html(page)
    assert "<script" not in text
    assert '"b<i>' not in text
    for picture in (p for s in page.sections for p in s.charts):
        ET.fromstring(picture.svg)
    told = markdown(page)
    assert "<script>" not in told.replace("\\<", "")
    tables = [line for line in told.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == line.count("|") - line.count("\\|") for line in tables)


def test_markdown_rows_have_the_columns_of_their_heads(comparison):
    rows = 0
    for block in re.split(r"\n\n+", markdown(page_of(*everything(comparison)))):
        table = [line for line in block.splitlines() if line.startswith("|")]
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
        assert len(counts) <= 1, block[:200]
        rows += len(table)
    assert rows > 100


def report(*words) -> int:
    return main(["report", *map(str, words), "--quiet"])


def test_the_folder_holds_pages_pictures_and_raw_files(comparison, tmp_path, capsys):
    assert report(*everything(comparison), "-o", tmp_path / "report") == 0
    folder = tmp_path / "report"
    assert capsys.readouterr().out == f"{folder / 'index.html'}\n"
    assert {path.name for path in folder.iterdir()} == {"index.html", "report.md", "pictures", "raw"}
    for path in everything(comparison):
        assert (folder / "raw" / path.name).read_bytes() == path.read_bytes()
    text = (folder / "report.md").read_text()
    for target in re.findall(r"\]\(([^)\s]+)", text):
        assert (folder / unquote(urlsplit(target).path)).is_file(), target
    for picture in (folder / "pictures").iterdir():
        assert "--c0" in ET.parse(picture).getroot().find(f"{SVG}style").text
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_missing_library_is_named_with_the_extra_that_brings_it(comparison, tmp_path, monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "m3_bench.report.render")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert report(comparison, "-o", tmp_path / "report") == 2
    assert 'jinja2 is not installed; this command needs: pip install "m3-runtime[bench]"' in capsys.readouterr().err


def test_files_of_one_name_are_both_kept(comparison, tmp_path):
    (tmp_path / "a").mkdir()
    shutil.copy(samples.HERE / "retrieval.json", tmp_path / "a" / "comparison.json")
    assert report(comparison, tmp_path / "a" / "comparison.json", "-o", tmp_path / "report") == 0
    names = {path.name for path in (tmp_path / "report" / "raw").iterdir()}
    assert names == {"comparison.json", "comparison-2.json"}


def test_a_report_is_replaced_and_nothing_else_is(comparison, tmp_path, capsys):
    folder = tmp_path / "report"
    assert report(comparison, "-o", folder) == 0
    assert report(samples.HERE / "retrieval.json", "-o", folder) == 0
    assert not (folder / "raw" / "comparison.json").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "index.html").write_text("<html>my page</html>")
    assert report(comparison, "-o", mine) == 2
    assert "is not a report; choose another folder, or pass --force" in capsys.readouterr().err
    assert (mine / "index.html").read_text() == "<html>my page</html>"
    assert report(comparison, "-o", mine, "--force") == 0
    assert (mine / "report.md").is_file()


def test_the_folder_of_the_documents_is_not_replaced_even_by_force(comparison, capsys):
    assert report(comparison, "-o", comparison.parent, "--force") == 2
    assert "which the report is made of" in capsys.readouterr().err
    assert comparison.is_file()


def test_the_folder_one_is_in_is_not_replaced(comparison, tmp_path, monkeypatch, capsys):
    (tmp_path / "kept").write_text("")
    monkeypatch.chdir(tmp_path)
    assert report(comparison, "-o", ".", "--force") == 2
    assert "the folder you are in" in capsys.readouterr().err
    assert (tmp_path / "kept").exists()


def test_a_bad_file_leaves_the_old_report(comparison, tmp_path, capsys):
    folder = tmp_path / "report"
    assert report(comparison, "-o", folder) == 0
    before = (folder / "index.html").read_bytes()
    bars = tmp_path / "bars.json"
    bars.write_text('{"schema_version": 1, "machine": {}, "rows": []}')
    assert report(comparison, bars, "-o", folder) == 1
    assert "bars.json is no document of m3-bench" in capsys.readouterr().err
    newer = tmp_path / "newer.json"
    newer.write_text(json.dumps(json.loads(comparison.read_text()) | {"schema_version": 9}))
    assert report(newer, "-o", folder) == 1
    assert "schema version 9, this release reads 1" in capsys.readouterr().err
    assert (folder / "index.html").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"report", "bars.json", "newer.json"}


def test_a_run_of_nothing_is_a_page_too(tmp_path):
    run = samples.stored("run")
    empty = tuple(replace(one, scenarios=()) for one in run.contenders)
    documents.write(replace(run, contenders=empty), tmp_path / "run.json")
    page = page_of(tmp_path / "run.json")
    assert [section.anchor for section in page.sections] == ["facts"]
    documents.write(replace(run, contenders=()), tmp_path / "none.json")
    assert html(page_of(tmp_path / "none.json"))
    assert isinstance(documents.read(tmp_path / "none.json"), Run)
