"""Margins: figures of stored scores, and `m3-bench margins` on bundles."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from m3_bench import cli, documents, stats
from m3_bench.documents import Margins, Model, PairScoresOf
from m3_bench.stats import paired_difference
from m3_runtime import M3Encoder

SAMPLE = Path(__file__).parents[2] / "benchmarks" / "data" / "finetune_sample.jsonl"
MODEL = Model("m", "m3-0", "0")
POSITIVES = ((0.9, 0.7), (0.5,), (0.6,), (0.4,))
NEGATIVES = ((0.8, 0.1), (0.5, 0.2), (), (0.6,))


def scores(positives, negatives, bundle="a", variant="onnx-fp32", method="dense") -> PairScoresOf:
    return PairScoresOf(bundle, MODEL, variant, method, positives, negatives)


def margins(*words) -> int:
    return cli.main(["margins", *map(str, words), "--threads", "1"])


def test_figures_of_stored_scores():
    one = scores(POSITIVES, NEGATIVES)
    assert stats.margins(one) == pytest.approx((0.1, 0.0, -0.2))
    # 0.9 > 0.8, 0.9 > 0.1, 0.7 < 0.8, 0.7 > 0.1; 0.5 = 0.5, 0.5 > 0.2; 0.4 < 0.6
    assert stats.pair_accuracies(one) == (0.75, 0.75, 0.0)


def test_without_negatives_there_is_no_figure():
    one = scores(((0.5,),), ((),))
    assert stats.margins(one) == stats.pair_accuracies(one) == ()
    assert stats.loss([one, scores(((0.5,),), ((),), variant="onnx-int8")], one, stats.margins) is None


def test_losses_and_gains_are_of_the_same_method():
    worse = tuple(tuple(score - 0.05 for score in row) for row in POSITIVES)
    rows = [
        scores(POSITIVES, NEGATIVES),
        scores(worse, NEGATIVES, variant="onnx-int8"),
        scores(worse, NEGATIVES, variant="onnx-int8", method="sparse"),
        scores(worse, NEGATIVES, bundle="b"),
        scores(worse, NEGATIVES, bundle="b", variant="onnx-int8"),
    ]
    losses = [stats.loss(rows, row, stats.margins) for row in rows]
    assert [one is None for one in losses] == [True, False, True, True, False]
    assert losses[1].mean == pytest.approx(0.05)
    assert losses[1].is_clear
    assert losses[4].mean == 0
    gains = [stats.gain(rows, row, stats.margins) for row in rows]
    assert [one is None for one in gains] == [True, True, True, False, False]
    assert gains[3] == paired_difference(stats.margins(rows[3]), stats.margins(rows[0]))
    assert gains[3].mean == pytest.approx(-0.05)


def test_scores_are_those_of_the_runtime(tiny_bundle, tmp_path):
    lines = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    assert margins(SAMPLE, tiny_bundle, "--variants", "onnx-fp32", "-o", tmp_path / "m.json") == 0
    found = documents.read_as(Margins, tmp_path / "m.json")
    assert found.lines == 26
    assert found.query_lines == tuple(range(1, 27))
    by_method = {row.method: row for row in found.scores}
    with M3Encoder.open(tiny_bundle, variant="onnx-fp32", threads=1) as encoder:
        for number in (0, 7, 22, 25):
            pairs = [(lines[number]["query"], text) for text in lines[number]["pos"] + lines[number]["neg"] if text]
            expected = encoder.compute_score(pairs, weights_for_different_modes=[1, 0.3, 1])
            names = {"dense": "dense", "sparse": "sparse", "colbert": "colbert"}
            names |= {"sparse+dense": "dense+sparse 1/0.3", "colbert+sparse+dense": "all 1/0.3/1"}
            for theirs, ours in names.items():
                row = by_method[ours]
                got = (*row.positives[number], *row.negatives[number])
                np.testing.assert_allclose(got, expected[theirs], atol=2e-6)
    assert [len(row) for row in by_method["dense"].positives] == [len(line["pos"]) for line in lines]
    assert by_method["dense"].negatives[25] == ()


def test_before_and_after_with_bad_lines(tiny_bundle, tmp_path, capsys):
    good = SAMPLE.read_text(encoding="utf-8").splitlines()[:5]
    bad = ['{"query": "a", "pos": ["b"]}', '{"query": "a", "pos": ["b"], "neg": []}']
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join([*good[:2], *bad, *good[2:]]), encoding="utf-8")
    words = ("--variants", "onnx-fp32,onnx-int8", "--weights", "1,0.3,1", "-o", tmp_path / "m.json")
    (tmp_path / "after").symlink_to(tiny_bundle)
    assert margins(path, tiny_bundle, tmp_path / "after", *words) == 0
    found = documents.read_as(Margins, tmp_path / "m.json")
    assert [bad.line for bad in found.bad_lines] == [3, 4]
    assert found.query_lines == (1, 2, 5, 6, 7)
    names = [(row.bundle, row.variant, row.method) for row in found.scores]
    methods = ("dense", "sparse", "colbert", "all 1/0.3/1")
    assert names == [
        (bundle, variant, method)
        for bundle in ("tiny-random", "after")
        for variant in ("onnx-fp32", "onnx-int8")
        for method in methods
    ]
    captured = capsys.readouterr()
    assert "train.jsonl, line 3 is left out: neg: Field required" in captured.err
    assert "* line 4 was left out: neg: List should have at least 1 item" in captured.out
    assert "gain of pair accuracy over tiny-random" in captured.out


def test_without_negatives_there_is_nothing_to_measure(tiny_bundle, tmp_path, capsys):
    path = tmp_path / "train.jsonl"
    path.write_text('{"query": "a", "pos": ["b"], "neg": [""]}\n')
    assert margins(path, tiny_bundle, "--variants", "onnx-fp32") == 2
    assert "not one query has negatives" in capsys.readouterr().err


def test_limits_and_notes(tiny_bundle, tmp_path):
    words = ("--variants", "onnx-fp32", "--limit-queries", 3, "--max-length", 5, "-o", tmp_path / "m.json")
    assert margins(SAMPLE, tiny_bundle, *words) == 0
    found = documents.read_as(Margins, tmp_path / "m.json")
    assert found.query_lines == (1, 2, 3)
    assert found.notes[0] == "only the first 3 of 26 good lines"
    assert ": texts of pairs that were longer and were cut: " in found.notes[1]


def test_texts_with_dropped_pieces_are_counted(small_bundle, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"query": "the model", "pos": ["на"], "neg": ["search"]}\n')
    assert margins(path, small_bundle, "--variants", "onnx-fp32", "-o", tmp_path / "m.json") == 0
    (note,) = documents.read_as(Margins, tmp_path / "m.json").notes
    assert note.endswith(": texts of pairs with pieces that the bundle dropped: 1")


def test_a_bundle_without_the_other_heads_is_scored_by_dense(tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "dense", copy_function=os.link)
    manifest = json.loads((tiny_bundle / "manifest.json").read_text())
    (tmp_path / "dense" / "manifest.json").unlink()
    (tmp_path / "dense" / "manifest.json").write_text(json.dumps(manifest | {"heads": ["dense"]}))
    words = ("--variants", "onnx-fp32", "--limit-queries", 3, "-o", tmp_path / "m.json")
    assert margins(SAMPLE, tiny_bundle, tmp_path / "dense", *words) == 0
    found = documents.read_as(Margins, tmp_path / "m.json")
    ours, (alone,) = ([row for row in found.scores if row.bundle == name] for name in ("tiny-random", "dense"))
    assert alone.method == "dense"
    for got, wanted in zip(alone.positives + alone.negatives, ours[0].positives + ours[0].negatives, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert "dense has no sparse and no colbert head: methods that need it were left out" in found.notes


def test_a_file_that_is_no_lines_is_explained(tiny_bundle, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"query": "a", "pos": ["b"], "neg": ["c"]}, indent=2))
    assert margins(path, tiny_bundle, "-o", tmp_path / "m.json") == 2
    captured = capsys.readouterr()
    assert "Expected one object on each line; jq -c . a.jsonl makes such lines" in captured.err
    assert not (tmp_path / "m.json").exists()


def test_the_help_shows_a_line_and_examples(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["margins", "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert '{"query": "deepest lake", "pos": ["Lake Baikal is …"]' in text
    assert "m3-bench margins held_out.jsonl out/before out/after" in text


def test_no_input_is_written_over(tiny_bundle, tmp_path, capsys):
    lines, link = tmp_path / "lines.jsonl", tmp_path / "link.json"
    shutil.copy(SAMPLE, lines)
    link.hardlink_to(lines)
    for out in (lines, link, tiny_bundle / "config.json"):
        before = out.read_bytes()
        assert margins(lines, tiny_bundle, "-o", out, "--force") == 2
        assert "would be written over" in capsys.readouterr().err
        assert out.read_bytes() == before
