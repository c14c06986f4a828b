"""Haystack's own pipelines, its store in memory and its Qdrant store."""

import asyncio
import gc
import inspect
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import haystack
import numpy as np
import pytest
from haystack import DeserializationError, Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack_integrations.components.retrievers.qdrant import QdrantHybridRetriever, QdrantSparseEmbeddingRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore

from m3_runtime import BundleNotFoundError, HeadError, InputError, M3Encoder, VariantError
from m3_runtime.bundle.reader import sha256_of
from m3_runtime.integrations.haystack import (
    M3DocumentEmbedder,
    M3HybridDocumentEmbedder,
    M3HybridTextEmbedder,
    M3SparseDocumentEmbedder,
    M3SparseTextEmbedder,
    M3TextEmbedder,
    shared_encoder,
)

QUESTIONS = {"zh-huozi": "谁用胶泥做成活字？", "en-honeybee": "How do bees tell each other where the flowers are?"}
DENSE, SPARSE = "embedding", "sparse_embedding"
TEXT_EMBEDDERS = {M3TextEmbedder: {DENSE}, M3SparseTextEmbedder: {SPARSE}, M3HybridTextEmbedder: {DENSE, SPARSE}}
DOCUMENT_EMBEDDERS = {
    M3DocumentEmbedder: {DENSE},
    M3SparseDocumentEmbedder: {SPARSE},
    M3HybridDocumentEmbedder: {DENSE, SPARSE},
}
OPENED = {"variant": "onnx-fp32", "threads": 1}
# Haystack 3 makes only components that it is told to trust; 2 makes any, and has no such argument.
IS_ASKING = "allowed_modules" in inspect.signature(Pipeline.loads).parameters
TRUST = {"allowed_modules": ["m3_runtime"]} if IS_ASKING else {}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*address):
        raise AssertionError(f"a connection to {address} was opened")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)


@pytest.fixture(scope="module", autouse=True)
def encoder(mini_bundle):
    """Held as long as these tests run, so that every component finds it open."""
    return shared_encoder(mini_bundle, **OPENED)


@pytest.fixture
def make(mini_bundle):
    return lambda kind, **more: kind(mini_bundle, **OPENED, **more)


@pytest.fixture
def documents(library):
    return [Document(content=text, meta={"name": name}) for name, text in library]


def rewrite(folder, change):
    """Change a bundle's manifest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def assert_vectors(found, encoding, row):
    """What a component gave is what `encode` gives."""
    dense, sparse = found.get(DENSE), found.get(SPARSE)
    assert dense is not None or sparse is not None
    if dense is not None:
        np.testing.assert_allclose(dense, encoding["dense_vecs"][row], atol=1e-6)
    if sparse is not None:
        weights = encoding["lexical_weights"][row]
        assert sparse.indices == [int(token) for token in weights]
        np.testing.assert_allclose(sparse.values, list(weights.values()), atol=1e-5)


@pytest.mark.parametrize("kind", TEXT_EMBEDDERS)
def test_a_text_gets_what_encode_gives(make, encoder, kind):
    embedder = make(kind)
    expected = encoder.encode(["How do bees talk?"], return_sparse=True)
    found = embedder.run(text="How do bees talk?")
    assert_vectors(found, expected, 0)
    assert found.keys() == TEXT_EMBEDDERS[kind]
    assert asyncio.run(embedder.run_async(text="How do bees talk?")) == found


def test_an_asynchronous_pipeline(make):
    pipeline = getattr(haystack, "AsyncPipeline", Pipeline)()  # Haystack 2 has two kinds
    pipeline.add_component("text", make(M3TextEmbedder))
    asked = {"text": {"text": "bees"}}
    assert asyncio.run(pipeline.run_async(asked)) == {"text": make(M3TextEmbedder).run("bees")}


@pytest.mark.parametrize("kind", DOCUMENT_EMBEDDERS)
def test_documents_get_what_encode_gives(make, encoder, kind):
    texts = ["three words here", "一", "a longer text than the others, so that the order is not the order of lengths"]
    came_in = [Document(content=text, meta={"n": n}, score=0.5) for n, text in enumerate(texts)]
    embedder = make(kind)
    found = embedder.run(documents=came_in)["documents"]
    expected = encoder.encode(texts, return_sparse=True)
    for row, document in enumerate(found):
        assert_vectors(vars(document), expected, row)
        assert {name for name in (DENSE, SPARSE) if getattr(document, name) is not None} == DOCUMENT_EMBEDDERS[kind]
    # nothing else is changed, neither in the copies nor in what came in
    assert [replace(document, embedding=None, sparse_embedding=None) for document in found] == came_in
    assert all(document.embedding is None and document.sparse_embedding is None for document in came_in)
    assert asyncio.run(embedder.run_async(documents=came_in))["documents"] == found


def test_two_components_in_a_row_fill_both_vectors(make):
    one = make(M3HybridDocumentEmbedder).run([Document(content="bees")])["documents"]
    dense = make(M3DocumentEmbedder).run([Document(content="bees")])["documents"]
    assert make(M3SparseDocumentEmbedder).run(dense)["documents"] == one


@pytest.mark.parametrize("kind", DOCUMENT_EMBEDDERS)
def test_no_documents_and_documents_without_content(make, encoder, kind):
    embedder = make(kind)
    assert embedder.run([]) == {"documents": []}
    (found,) = embedder.run([Document()])["documents"]
    assert_vectors(vars(found), encoder.encode([""], return_sparse=True), 0)
    assert found.content is None


def test_metadata_goes_before_the_content(make, encoder):
    embedder = make(M3DocumentEmbedder, meta_fields_to_embed=["title", "nothing", "absent", "year"])
    meta = {"year": 1041, "title": "活字", "nothing": None, "other": "left out"}
    found = embedder.run([Document(content="胶泥", meta=meta), Document(meta=meta)])["documents"]
    expected = encoder.encode(["活字\n1041\n胶泥", "活字\n1041\n"])
    for row, document in enumerate(found):
        assert_vectors(vars(document), expected, row)
    dashed = make(M3DocumentEmbedder, meta_fields_to_embed=["title"], embedding_separator=" - ")
    (document,) = dashed.run([Document(content="胶泥", meta=meta)])["documents"]
    assert_vectors(vars(document), encoder.encode(["活字 - 胶泥"]), 0)


@pytest.fixture
def store(make, documents):
    """Filled by an indexing pipeline."""
    store = InMemoryDocumentStore(embedding_similarity_function="dot_product")
    indexing = Pipeline()
    indexing.add_component("embedder", make(M3DocumentEmbedder))
    indexing.add_component("writer", DocumentWriter(store))
    indexing.connect("embedder.documents", "writer.documents")
    assert indexing.run({"embedder": {"documents": documents}}) == {"writer": {"documents_written": len(documents)}}
    return store


def asking(embedder, retriever):
    pipeline = Pipeline()
    pipeline.add_component("embedder", embedder)
    pipeline.add_component("retriever", retriever)
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    return pipeline


def best(pipeline, question):
    return pipeline.run({"embedder": {"text": question}})["retriever"]["documents"][0]


@pytest.mark.parametrize("answer", QUESTIONS)
def test_haystacks_own_store(make, encoder, store, answer):
    pipeline = asking(make(M3TextEmbedder), InMemoryEmbeddingRetriever(store, top_k=3))
    found = best(pipeline, QUESTIONS[answer])
    assert found.meta["name"] == answer
    both = encoder.encode([QUESTIONS[answer], found.content])["dense_vecs"]
    assert found.score == pytest.approx(float(both[0] @ both[1]), abs=1e-5)


@pytest.mark.filterwarnings("ignore:Payload indexes have no effect")  # the store makes them, in memory too
@pytest.mark.parametrize("answer", QUESTIONS)
def test_sparse_and_hybrid_in_the_qdrant_store(make, encoder, documents, answer):
    store = QdrantDocumentStore(
        ":memory:",
        embedding_dim=encoder.bundle.manifest.geometry.hidden_size,
        use_sparse_embeddings=True,
        similarity="dot_product",
        progress_bar=False,
    )
    embedded = make(M3HybridDocumentEmbedder).run([*documents, Document()])["documents"]
    store.write_documents(embedded)

    hybrid = asking(make(M3HybridTextEmbedder), QdrantHybridRetriever(document_store=store, top_k=3))
    hybrid.connect("embedder.sparse_embedding", "retriever.query_sparse_embedding")
    assert best(hybrid, QUESTIONS[answer]).meta["name"] == answer

    sparse = Pipeline()
    sparse.add_component("embedder", make(M3SparseTextEmbedder))
    sparse.add_component("retriever", QdrantSparseEmbeddingRetriever(document_store=store, top_k=3))
    sparse.connect("embedder.sparse_embedding", "retriever.query_sparse_embedding")
    found = best(sparse, QUESTIONS[answer])
    assert found.meta["name"] == answer
    question, passage = encoder.encode([QUESTIONS[answer], found.content], return_sparse=True)["lexical_weights"]
    assert found.score == pytest.approx(encoder.compute_lexical_matching_score(question, passage), rel=1e-4)
    store.close()


def test_a_pipeline_is_written_and_read(make, mini_bundle, encoder):
    embedder = make(M3DocumentEmbedder, max_length=64, meta_fields_to_embed=["title"], embedding_separator=": ")
    pipeline = Pipeline()
    pipeline.add_component("documents", embedder)
    pipeline.add_component("text", make(M3HybridTextEmbedder))
    read = Pipeline.loads(pipeline.dumps(), **TRUST)
    assert read.dumps() == pipeline.dumps()
    assert read.get_component("documents").to_dict() == {
        "type": "m3_runtime.integrations.haystack.M3DocumentEmbedder",
        "init_parameters": {
            "bundle": str(mini_bundle),
            "variant": "onnx-fp32",
            "threads": 1,
            "cache_dir": None,
            "low_memory": False,
            "max_length": 64,
            "meta_fields_to_embed": ["title"],
            "embedding_separator": ": ",
        },
    }
    asked = {"text": {"text": "bees"}, "documents": {"documents": [Document(content="dance", meta={"title": "Bees"})]}}
    assert read.run(asked) == pipeline.run(asked)
    assert all(read.get_component(name).encoder is encoder for name in ("documents", "text"))


def test_haystack_3_asks_whom_it_may_trust_and_2_loads_what_it_is_given(make):
    pipeline = Pipeline()
    pipeline.add_component("text", make(M3TextEmbedder))
    with pytest.raises(DeserializationError, match="allowed_modules") if IS_ASKING else nullcontext():
        assert isinstance(Pipeline.loads(pipeline.dumps()), Pipeline)


@pytest.mark.parametrize("kind", [*TEXT_EMBEDDERS, *DOCUMENT_EMBEDDERS])
def test_every_component_is_made_of_its_own_values(make, tmp_path, kind):
    made = make(kind, max_length=7, cache_dir=tmp_path)
    assert made.warm_up() is None
    again = kind.from_dict(made.to_dict())
    assert type(again) is kind
    assert again.to_dict() == made.to_dict()
    with pytest.raises(DeserializationError):
        kind.from_dict(made.to_dict() | {"type": "something.Else"})


@pytest.mark.parametrize("kind", [*TEXT_EMBEDDERS, *DOCUMENT_EMBEDDERS])
def test_a_component_of_an_open_encoder_and_one_that_was_pickled(mini_bundle, make, kind):
    made = make(kind, max_length=7)
    with M3Encoder.open(mini_bundle, **OPENED) as opened:
        given = kind(opened, max_length=7)
        assert given.encoder is opened
        assert given.to_dict() == made.to_dict()
    sent = pickle.loads(pickle.dumps(made))
    assert sent.encoder is made.encoder  # in this process it is open already
    assert sent.to_dict() == made.to_dict()
    asked = "bees" if kind in TEXT_EMBEDDERS else [Document(content="bees")]
    assert sent.run(asked) == made.run(asked)


def test_what_is_shared_and_what_is_not(tiny_bundle, tmp_path, monkeypatch):
    embedder = M3TextEmbedder(tiny_bundle, **OPENED)
    encoder = embedder.encoder
    monkeypatch.chdir(tiny_bundle)
    assert M3HybridDocumentEmbedder(".", **OPENED, max_length=9).encoder is encoder
    assert shared_encoder(tiny_bundle, **OPENED, cache_dir=tmp_path) is encoder
    assert shared_encoder(tiny_bundle, variant="onnx-fp32", threads=2) is not encoder
    assert shared_encoder(tiny_bundle, **OPENED, low_memory=True) is not encoder
    assert shared_encoder(tiny_bundle, variant="onnx-int8", threads=1) is not encoder
    automatic = shared_encoder(tiny_bundle)
    assert shared_encoder(tiny_bundle, variant=automatic.variant.name) is automatic


def test_an_encoder_goes_with_the_last_component(tiny_bundle):
    text, documents = M3TextEmbedder(tiny_bundle, **OPENED), M3DocumentEmbedder(tiny_bundle, **OPENED)
    encoder = weakref.ref(text.encoder)
    del text
    gc.collect()
    assert encoder() is documents.encoder
    del documents
    gc.collect()
    assert encoder() is None


def test_threads_that_ask_together_get_one(tiny_bundle):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: shared_encoder(tiny_bundle, **OPENED), range(8)))
    assert len(set(map(id, found))) == 1


def test_another_export_in_the_folders_place_is_another_encoder(tiny_bundle, tmp_path):
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    before = shared_encoder(folder, **OPENED)
    config = folder / "config.json"
    config.write_bytes(config.read_bytes() + b"\n")
    told = {"sha256": sha256_of(config), "size_bytes": config.stat().st_size}
    rewrite(folder, lambda manifest: {entry["path"]: entry for entry in manifest["files"]}["config.json"].update(told))
    after = shared_encoder(folder, **OPENED)
    assert after is not before
    assert shared_encoder(folder, **OPENED) is after


@pytest.mark.parametrize("kind", TEXT_EMBEDDERS)
def test_max_length_of_a_text(make, encoder, kind):
    expected = encoder.encode(["one two"], return_sparse=True)
    assert_vectors(make(kind, max_length=4).run("one two three four five six"), expected, 0)


@pytest.mark.parametrize("kind", DOCUMENT_EMBEDDERS)
def test_max_length_of_documents(make, encoder, kind):
    (found,) = make(kind, max_length=4).run([Document(content="one two three four five six")])["documents"]
    assert_vectors(vars(found), encoder.encode(["one two"], return_sparse=True), 0)


def test_what_is_no_text_or_no_document_is_named(make):
    text, documents = make(M3TextEmbedder), make(M3DocumentEmbedder)
    for wrong in (["a text"], None, Document(content="a")):
        with pytest.raises(InputError, match=r"text must be a str, got .*document embedder"):
            text.run(wrong)
    with pytest.raises(InputError, match="surrogate"):
        text.run("half \ud800")
    for wrong in ("a text", Document(content="a"), None):
        with pytest.raises(InputError, match=r"documents must be a list of Documents, got .*text embedder"):
            documents.run(wrong)
    with pytest.raises(InputError, match=r"documents\[1\] must be a Document, got str"):
        documents.run([Document(content="a"), "b"])
    with pytest.raises(InputError, match=r"text 1 .*surrogate"):
        documents.run([Document(content="a"), Document(id="b", content="half \ud800")])


def test_what_cannot_be_made_is_refused_at_once(make, mini_bundle, tmp_path):
    with pytest.raises(BundleNotFoundError):
        M3TextEmbedder(tmp_path / "nothing")
    with pytest.raises(VariantError):
        M3TextEmbedder(mini_bundle, variant="other")
    for wrong in ({"max_length": 2}, {"max_length": "many"}, {"embedding_separator": 3}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            make(M3DocumentEmbedder, **wrong)
    with pytest.raises(InputError, match="meta_fields_to_embed must be a list of names, got 'title'"):
        make(M3DocumentEmbedder, meta_fields_to_embed="title")
    with pytest.raises(InputError, match="threads"):
        M3TextEmbedder(mini_bundle, threads=0)


def test_a_head_that_the_bundle_lacks_is_named_at_once(tiny_bundle, tmp_path):
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    rewrite(folder, lambda manifest: manifest.update(heads=["dense"]))
    M3TextEmbedder(folder, **OPENED)
    for kind in (M3SparseTextEmbedder, M3HybridDocumentEmbedder):
        with pytest.raises(HeadError, match="sparse"):
            kind(folder, **OPENED)


TELEMETRY = """
import socket, sys

def note(*wanted, **more):
    print("wanted", flush=True)
    raise OSError("no network here")

socket.getaddrinfo = socket.socket.connect = socket.socket.connect_ex = note
import posthog
from haystack import Document, Pipeline
from m3_runtime.integrations.haystack import M3HybridDocumentEmbedder, M3TextEmbedder

text = M3TextEmbedder(sys.argv[1], variant="onnx-fp32")
text.run("bees")
M3HybridDocumentEmbedder(sys.argv[1], variant="onnx-fp32").run([Document(content="bees")])
posthog.flush()
print("quiet", flush=True)
pipeline = Pipeline()
pipeline.add_component("text", text)
pipeline.run({"text": {"text": "bees"}})
"""


def test_components_send_nothing_by_themselves(tiny_bundle, tmp_path):
    """With Haystack's telemetry on. Its pipelines do send, which shows that the net catches something."""
    env = {**os.environ, "HOME": str(tmp_path)}
    env.pop("HAYSTACK_TELEMETRY_ENABLED")
    command = [sys.executable, "-c", TELEMETRY, str(tiny_bundle)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    first, *later = done.stdout.split()
    assert first == "quiet"
    assert "wanted" in later
    assert not hasattr(M3TextEmbedder, "_get_telemetry_data")
