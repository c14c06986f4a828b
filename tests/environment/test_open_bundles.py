"""sentence-transformers, Optimum, OpenVINO GenAI and fastembed open a bundle's folder as it is, without a network.

They give our vectors, and `m3_runtime.compat.sentence_transformers` gives what sentence-transformers gives.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from m3_runtime import Bundle, M3Encoder
from m3_runtime.compat.sentence_transformers import SentenceTransformer

TEXTS = [
    "What is BGE M3?",
    "trailing blank ",
    "",
    "日本語のテキストをトークン化する。",
    "<mask> in <mask>",
    "far longer than the model takes " * 200,
]
PROMPTS = {"query": "find: ", "passage": "text: "}
CALLS = [
    ("encode", {}),
    ("encode", {"prompt_name": "passage", "batch_size": 1}),
    ("encode", {"prompt": "own: "}),
    ("encode_query", {}),
    ("encode_document", {}),
    ("encode_query", {"truncate_dim": 16, "normalize_embeddings": True}),
    ("encode", {"precision": "uint8"}),
    ("encode", {"precision": "int8"}),
    ("encode", {"precision": "ubinary"}),
    ("encode", {"precision": "binary"}),
]
FASTEMBED_PAGE = Path(__file__).parents[2] / "docs" / "use" / "fastembed.md"


@pytest.fixture(scope="module")
def found(tiny_bundle, mini_bundle, docs_code, run_foreign, tmp_path_factory) -> dict:
    """Everything, from one process: both libraries take long to import."""
    folder = tmp_path_factory.mktemp("foreign")
    for name, bundle in (("tiny", tiny_bundle), ("mini", mini_bundle)):
        (folder / name).mkdir()
        (folder / name / "bge-m3-cpu").symlink_to(bundle)
    request = {
        "sentence-transformers": docs_code("sentence-transformers"),
        "optimum": docs_code("Optimum"),
        "genai": docs_code("OpenVINO GenAI"),
        "fastembed": re.findall(r"```python\n(.*?)```", FASTEMBED_PAGE.read_text(encoding="utf-8"), re.DOTALL)[1:],
        "texts": TEXTS,
        "prompts": PROMPTS,
        "calls": CALLS,
    }
    return run_foreign("open_bundles.py", request, folder)


@pytest.fixture(scope="module")
def page_texts(docs_code) -> list[str]:
    """The texts that the page's code encodes."""
    line = next(line for line in docs_code("sentence-transformers")[0].splitlines() if "encode(" in line)
    texts = json.loads(line[line.index("[") : line.index("]") + 1])
    assert json.dumps(texts, ensure_ascii=False) in docs_code("Optimum")[0]
    return texts


@pytest.mark.parametrize("name", ["tiny", "mini"])
def test_sentence_transformers_gives_our_dense_vectors(found, page_texts, tiny_bundle, mini_bundle, name):
    """tiny-random takes the first token, mini-m3 the mean: what the pooling file says differs."""
    bundle = {"tiny": tiny_bundle, "mini": mini_bundle}[name]
    with M3Encoder.open(bundle, variant="onnx-fp32", threads=1) as encoder:
        np.testing.assert_allclose(found[name]["fp32"], encoder.encode(TEXTS).dense_vecs, atol=1e-5)
        np.testing.assert_allclose(found[name]["page"], encoder.encode(page_texts).dense_vecs, atol=1e-5)
    assert found[name]["max_seq_length"] == Bundle.open(bundle).manifest.geometry.max_tokens


def test_sentence_transformers_opens_int8_too(found, tiny_bundle):
    """The same integers; a float at the edge of a step may fall to either side of it."""
    with M3Encoder.open(tiny_bundle, variant="onnx-int8", threads=1) as encoder:
        cosines = (np.array(found["tiny"]["int8"]) * encoder.encode(TEXTS).dense_vecs).sum(axis=1)
    assert cosines.min() > 0.9999


@pytest.mark.parametrize("name", ["tiny", "mini"])
def test_openvinos_graph_without_heads_gives_our_dense_vectors(found, page_texts, tiny_bundle, mini_bundle, name):
    """In sentence-transformers and in OpenVINO GenAI. The same integers, but a run of another shape."""
    bundle = {"tiny": tiny_bundle, "mini": mini_bundle}[name]
    with M3Encoder.open(bundle, variant="openvino-int8", threads=1) as encoder:
        expected = {"texts": encoder.encode(TEXTS).dense_vecs, "page": encoder.encode(page_texts).dense_vecs}
    assert lowest_cosine(found[name]["openvino"], expected["texts"]) > 0.999
    texts = [i for i, text in enumerate(TEXTS) if name == "mini" or text == text.strip()]  # tiny-random keeps a blank
    assert lowest_cosine(np.array(found["genai"][name]["texts"])[texts], expected["texts"][texts]) > 0.999
    assert lowest_cosine(found["genai"][name]["page"], expected["page"]) > 0.999


def lowest_cosine(found, expected: np.ndarray) -> float:
    return float((np.array(found) * expected).sum(axis=1).min())


def test_optimum_gives_all_three_heads(found, page_texts, tiny_bundle):
    with M3Encoder.open(tiny_bundle, variant="onnx-fp32", threads=1) as encoder:
        expected = encoder.encode(page_texts, return_sparse=True, return_colbert_vecs=True)
        np.testing.assert_allclose(found["optimum"]["dense_vecs"], encoder.encode(TEXTS).dense_vecs, atol=1e-5)
        ids = encoder.tokenizer.encode_batch(page_texts, 512).ids
    page = found["optimum"]["page"]
    np.testing.assert_allclose(page["dense_vecs"], expected.dense_vecs, atol=1e-5)
    for text, (weights, rows) in enumerate(zip(expected.lexical_weights, expected.colbert_vecs, strict=True)):
        assert heaviest(ids[text], page["token_weights"][text]) == pytest.approx(weights, abs=1e-5)
        np.testing.assert_allclose(page["colbert_vecs"][text][: len(rows)], rows, atol=1e-5)


def heaviest(ids, token_weights: list[float]) -> dict[str, float]:
    """Lexical weights of the graph's: the largest of each token that has any; padding follows at the end."""
    found: dict[str, float] = {}
    for token, weight in zip(map(str, ids.tolist()), token_weights, strict=False):
        if weight > 0:
            found[token] = max(weight, found.get(token, 0.0))
    return found


def test_transformers_reads_our_tokens_and_our_limit(found, tiny_bundle):
    with M3Encoder.open(tiny_bundle, variant="onnx-fp32", threads=1) as encoder:
        ids = encoder.tokenizer.encode_batch(TEXTS, encoder.bundle.manifest.geometry.max_tokens).ids
    assert found["optimum"]["ids"] == [row.tolist() for row in ids]
    assert found["optimum"]["last_hidden_state"] == [len(TEXTS), 512, 64]


def test_our_class_gives_what_sentence_transformers_gives(found, tiny_bundle):
    model = SentenceTransformer(tiny_bundle, variant="onnx-fp32", threads=1, prompts=PROMPTS)
    ours = [getattr(model, method)(TEXTS, **more) for method, more in CALLS]
    for name in ("cosine", "dot", "euclidean", "manhattan"):
        model.similarity_fn_name = name
        ours += [model.similarity(ours[0], ours[0][:2]), model.similarity_pairwise(ours[0], ours[0])]
    model.close()
    for (method, more), mine, theirs in zip([*CALLS, *[("similarity", {})] * 8], ours, found["calls"], strict=True):
        assert mine.shape == np.shape(theirs), (method, more)
        if more.get("precision", "float32").endswith("binary"):  # a number that is nearly 0 may have either sign
            assert (mine != np.array(theirs)).sum() <= 2, more
        else:
            step = 1 if "precision" in more else 2e-3 if method == "similarity" else 1e-5
            np.testing.assert_allclose(mine.astype(float), theirs, atol=step, err_msg=f"{method} {more}")


def test_fastembed_gives_our_dense_vectors(found, page_texts, tiny_bundle):
    with M3Encoder.open(tiny_bundle, variant="onnx-fp32", threads=1) as encoder:
        np.testing.assert_allclose(found["fastembed"]["page"], encoder.encode(page_texts).dense_vecs, atol=1e-5)
        np.testing.assert_allclose(found["fastembed"]["texts"], encoder.encode(TEXTS).dense_vecs, atol=1e-5)


def test_nothing_asked_for_the_network(found):
    assert found["connections"] == []


def test_the_page_names_what_was_tested(found, integrations_page):
    versions = {name: version.rpartition(".")[0] for name, version in found["versions"].items()}
    assert f"sentence-transformers {versions['sentence-transformers']} and optimum-onnx" in integrations_page
    assert f"optimum-onnx {versions['optimum-onnx']}" in integrations_page
    assert f"optimum-intel {versions['optimum-intel']}" in integrations_page
    assert f"openvino-genai {versions['openvino-genai'].rpartition('.')[0]}" in integrations_page
    assert found["versions"]["transformers"].startswith("4.")
