"""`m3-bench retrieval --reranker`: rankings in the order of a cross-encoder's scores."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from m3_bench import cli, documents
from m3_bench.documents import MethodRun, Retrieval
from m3_bench.retrieval.reranking import PairScorer
from m3_runtime import M3Reranker
from m3_runtime.io.progress import Progress

DATA = Path(__file__).parents[2] / "benchmarks" / "data" / "multilingual"
QUICK = ("--limit-queries", "4", "--limit-documents", "12", "--threads", "1", "--weights", "1,0.3", "--quiet")


def found(tmp_path: Path, *words) -> tuple[Retrieval, dict[tuple[str, str], MethodRun]]:
    """What a run says, and its rows by variant and method."""
    out = tmp_path / "r.json"
    assert cli.main(["retrieval", str(DATA), *map(str, words), *QUICK, "-o", str(out), "--force"]) == 0
    document = documents.read_as(Retrieval, out)
    return document, {(run.variant, run.method): run for run in document.methods}


def test_every_ranking_is_reordered_by_every_variant(tiny_bundle, reranker_bundle, tmp_path, capsys):
    words = (tiny_bundle, "--reranker", reranker_bundle, "--variants", "onnx-fp32,onnx-int8", "--reranked", 12)
    document, rows = found(tmp_path, *words)
    own = ["dense", "sparse", "dense+sparse 1/0.3", "colbert"]
    reranked = ["BM25 words", *(f"{method}, {by}" for by in ("onnx-fp32", "onnx-int8") for method in own)]
    expected = [("", "TF-IDF words"), ("", "BM25 words"), ("", "word vectors")]
    expected += [(by, method) for by in ("onnx-fp32", "onnx-int8") for method in own]
    expected += [(by, f"reranked {method}") for by in ("onnx-fp32", "onnx-int8") for method in reranked]
    assert list(rows) == expected
    assert {run.bundle for run in document.methods} == {"", tiny_bundle.name, reranker_bundle.name}
    assert document.models[reranker_bundle.name].weights_sha256
    assert document.settings["reranked"] == "the best 12 of each ranking"
    # BM25 finds hardly any of the 12: a query and its document are of two languages
    timed = "the reranker's for the best 12 of dense, onnx-fp32, in which queries have most documents"
    assert document.settings["ms a query, reranked"] == f"its ranking's, and {timed}"
    # all 12 documents are in these rankings, so that the scores alone decide
    whole = [rows["onnx-fp32", f"reranked {method}, onnx-fp32"].metrics for method in ("dense", "colbert")]
    assert whole[0] == whole[1] != rows["onnx-fp32", "dense"].metrics
    first, again = rows["onnx-fp32", "dense"], rows["onnx-int8", "reranked dense, onnx-fp32"]
    assert again.query_ms > first.query_ms
    assert again.index_bytes == first.index_bytes
    table = capsys.readouterr().out
    name = f"{reranker_bundle.name} onnx-int8 reranked dense, onnx-fp32"
    line = next(line for line in table.splitlines() if name in line)
    assert "[" in line  # what INT8 loses against FP32 on the same ranking


def test_the_best_are_in_the_order_of_their_scores_and_each_pair_is_scored_once(reranker_bundle):
    passages = ["a lighthouse", "the market opens at three", "灯台だけが光っている", "один два три", " "]
    rankings = {"up": [0, 1, 2, 3], "down": [3, 2, 1, 0], "empty": [4, 0, 1]}
    with M3Reranker.open(reranker_bundle, variant="onnx-fp32", threads=1) as reranker:
        scorer = PairScorer(reranker, None, 3, Progress(quiet=True))
        ordered = scorer.reranked({name: [np.array(found)] for name, found in rankings.items()}, ["q"], passages)
        scores = reranker.compute_score([("q", text) for text in passages[:4]])
    assert (ordered.pairs, ordered.empty) == (5, 1)
    assert ordered.notes == ["1 of 5 pairs have an empty text and go last"]

    def by_score(*indices: int) -> list[int]:
        return sorted(indices, key=lambda n: -scores[n])

    found = {name: ranking[0].tolist() for name, ranking in ordered.rankings.items()}
    assert found == {"up": [*by_score(0, 1, 2), 3], "down": [*by_score(1, 2, 3), 0], "empty": [*by_score(0, 1), 4]}


def test_one_document_is_as_it_was(tiny_bundle, reranker_bundle, tmp_path):
    words = (tiny_bundle, "--reranker", reranker_bundle, "--variants", "onnx-fp32", "--reranked", 1)
    _, rows = found(tmp_path, *words)
    for method in ("dense", "sparse", "colbert"):
        again = rows["onnx-fp32", f"reranked {method}, onnx-fp32"]
        assert again.metrics == rows["onnx-fp32", method].metrics


def test_a_reranker_of_fewer_tokens_takes_what_it_can_and_cut_pairs_are_named(tiny_bundle, reranker_bundle, tmp_path):
    short = shutil.copytree(reranker_bundle, tmp_path / "short", copy_function=os.link)
    manifest = json.loads((short / "manifest.json").read_text())
    manifest["geometry"]["max_tokens"] = 20
    (short / "manifest.json").unlink()
    (short / "manifest.json").write_text(json.dumps(manifest))
    words = (tiny_bundle, "--reranker", short, "--variants", "onnx-fp32", "--max-length", 64)
    document, _ = found(tmp_path, *words)
    assert "short: it takes pairs of 20 tokens, fewer than the texts' 64" in document.notes
    assert any(" pairs were longer and were cut" in note for note in document.notes)


def test_a_length_below_a_pair_is_refused_before_anything_is_measured(tiny_bundle, reranker_bundle, capsys):
    words = [str(DATA), str(tiny_bundle), "--reranker", str(reranker_bundle), "--max-length", "5"]
    assert cli.main(["retrieval", *words]) == 2
    assert "--max-length must be at least 6 for a reranker's pairs, got 5" in capsys.readouterr().err


def test_a_query_that_leaves_no_room_is_named(tiny_bundle, reranker_bundle, tmp_path, capsys):
    words = (tiny_bundle, "--reranker", reranker_bundle, "--variants", "onnx-fp32", "--max-length", 8)
    assert cli.main(["retrieval", str(DATA), *map(str, words), *QUICK, "-o", str(tmp_path / "r.json")]) == 2
    assert re.search(r"the query '.+' has 6 tokens, which leave no room for a document in 8; ", capsys.readouterr().err)
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize("command", ["retrieval", "margins"])
def test_a_reranker_in_an_encoders_place(reranker_bundle, capsys, command):
    data = DATA if command == "retrieval" else DATA.parent / "finetune_sample.jsonl"
    assert cli.main([command, str(data), str(reranker_bundle)]) == 2
    assert "is a reranker's bundle: m3-bench retrieval takes it by --reranker" in capsys.readouterr().err


def test_an_encoder_in_a_rerankers_place(tiny_bundle, tmp_path, capsys):
    (tmp_path / "other").symlink_to(tiny_bundle)
    for folder in (tiny_bundle, tmp_path / "other"):  # under the same name, or another
        assert cli.main(["retrieval", str(DATA), str(tiny_bundle), "--reranker", str(folder)]) == 2
        assert "expected a reranker's bundle, this is an encoder's" in capsys.readouterr().err
