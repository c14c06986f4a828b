"""What reaches the engine and what comes back, with the engine watched."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from m3_runtime import Bundle, EngineError, M3Encoder
from m3_runtime.bundle.manifest import Head
from m3_runtime.engines import Engine, RawOutputs, TokenBatch
from m3_runtime.engines.select import open_engine
from m3_runtime.tokenizer import M3Tokenizer
from patience import PATIENCE_S

BUDGET = 256


class Watched:
    """A real engine that notes the shape of every batch, and may spoil an output."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.streams = 1
        self.packed_tokens = engine.packed_tokens
        self.shapes: list[tuple[int, ...]] = []
        self.spoil: tuple[str, float] | None = None
        self.is_running, self.may_run = threading.Event(), threading.Event()
        self.may_run.set()
        self.closed = 0

    def rest(self, least_tokens: int) -> None:
        self._engine.rest(least_tokens)

    def run(self, batch: TokenBatch, heads: Sequence[Head]) -> RawOutputs:
        self.is_running.set()
        assert self.may_run.wait(PATIENCE_S)
        self.shapes.append(batch.input_ids.shape)
        raw = self._engine.run(batch, heads)
        if self.spoil is None:
            return raw
        name, value = self.spoil
        spoilt = getattr(raw, name).copy()
        spoilt.flat[-1] = value
        return replace(raw, **{name: spoilt})

    def close(self) -> None:
        self.closed += 1
        self._engine.close()


@pytest.fixture
def watched(tiny_bundle: Path) -> Iterator[tuple[M3Encoder, Watched]]:
    bundle = Bundle.open(tiny_bundle)
    variant, info = bundle.variant("onnx-fp32"), bundle.manifest.tokenizer
    engine = Watched(open_engine(bundle, variant, 1))
    with M3Encoder(bundle, variant, M3Tokenizer.open(bundle.file(info.path), info), engine) as encoder:
        yield encoder, engine


def largest(shapes: list[tuple[int, ...]]) -> int:
    return max(texts * tokens for texts, tokens in shapes)


def test_batches_are_bounded_by_the_budget_and_not_by_the_corpus(watched):
    encoder, engine = watched
    corpus = [" ".join(["word"] * (i % 40)) for i in range(400)]
    seen = []
    for texts in (corpus, corpus * 8):
        engine.shapes.clear()
        encoder.encode(texts, len(texts), token_budget=BUDGET)
        assert sum(shape[0] for shape in engine.shapes) == len(texts)
        seen.append(largest(engine.shapes))
    assert BUDGET // 2 < seen[0] <= BUDGET, "batches should use the budget, and keep to it"
    assert seen[1] <= BUDGET


def test_scoring_is_bounded_by_the_budget_too(watched):
    encoder, engine = watched
    encoder.compute_score([(f"query {i}", "some passage " * (i % 9)) for i in range(300)], 300, token_budget=BUDGET)
    assert largest(engine.shapes) <= BUDGET


def test_one_long_text_is_a_batch_of_its_own(watched):
    encoder, engine = watched
    encoder.encode(["word " * 300, "a", "b"], token_budget=8)
    assert engine.shapes[0][0] == 1
    assert engine.shapes[0][1] > 8
    assert largest(engine.shapes[1:]) <= 8


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["dense_vecs", "token_weights", "colbert_vecs"])
def test_numbers_that_are_not_finite_are_an_error(watched, name, value):
    encoder, engine = watched
    heads = {"return_dense": True, "return_sparse": True, "return_colbert_vecs": True}
    engine.spoil = name, value
    with pytest.raises(EngineError, match=f"the graph's {name} are not all finite"):
        encoder.encode(["a text", "another one"], **heads)
    engine.spoil = name, 0.5
    encoder.encode(["a text", "another one"], **heads)


def test_a_call_that_runs_when_the_encoder_is_closed_finishes_all_its_batches(watched):
    encoder, engine = watched
    texts = ["one", "one two", "one two three"]
    expected = encoder.encode(texts).dense_vecs
    engine.is_running.clear()
    engine.may_run.clear()
    found: list[np.ndarray] = []
    call = threading.Thread(target=lambda: found.append(encoder.encode(texts, 1).dense_vecs))
    call.start()
    assert engine.is_running.wait(PATIENCE_S)
    encoder.close()
    assert engine.closed == 0
    with pytest.raises(EngineError, match="closed"):
        encoder.encode(texts)
    engine.may_run.set()
    call.join(PATIENCE_S)
    np.testing.assert_array_equal(found[0], expected)
    assert engine.closed > 0


def test_ids_give_what_their_texts_give(watched):
    encoder, _ = watched
    texts = ["one", "one two three", ""]
    ids = encoder.tokenizer.encode_batch(texts, 512).ids
    seen: list[TokenBatch] = []
    found = encoder.encode_ids(ids, {Head.SPARSE, Head.COLBERT}, batch_size=1, on_batch=seen.append)
    expected = encoder.encode_heads(texts, {Head.SPARSE, Head.COLBERT})
    assert found.dense_vecs is expected.dense_vecs is None
    assert found.lexical_weights == expected.lexical_weights
    assert all(map(np.array_equal, found.colbert_vecs, expected.colbert_vecs))
    assert found.token_counts.tolist() == expected.token_counts.tolist()
    assert sorted(batch.input_ids.size for batch in seen) == sorted(found.token_counts)
