"""Large inputs go window by window: the same results, the right index, one window ahead and no more."""

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from m3_runtime import Bundle, EngineError, M3Encoder, TextTooLongError
from m3_runtime.bundle.manifest import Head
from m3_runtime.encode import pipeline
from m3_runtime.engines import Engine, RawOutputs, TokenBatch
from m3_runtime.engines.select import open_engine
from m3_runtime.splitting import RunLimit
from m3_runtime.tokenizer import M3Tokenizer, TokenizedTexts
from patience import PATIENCE_S, wait_until

ALL = {"return_sparse": True, "return_colbert_vecs": True}
CORPUS = [" ".join(["word"] * (i * 7 % 13)) for i in range(200)]


class Slow:
    """A real engine whose first run waits for an event."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.streams = 1
        self.packed_tokens = engine.packed_tokens
        self.may_run = threading.Event()
        self.has_waited = True
        self.shapes: list[tuple[int, ...]] = []

    def run(self, batch: TokenBatch, heads: Sequence[Head]) -> RawOutputs:
        self.has_waited &= self.may_run.wait(PATIENCE_S)
        self.shapes.append(batch.input_ids.shape)
        return self._engine.run(batch, heads)

    def rest(self, least_tokens: int) -> None:
        self._engine.rest(least_tokens)

    def close(self) -> None:
        self._engine.close()


class Counting(M3Tokenizer):
    """A real tokenizer that counts its calls and tells an engine of the second one."""

    def __init__(self, tokenizer: M3Tokenizer, engine: Slow) -> None:
        vars(self).update(vars(tokenizer))
        self._engine = engine
        self.calls = 0

    def encode_batch(self, *arguments, **options) -> TokenizedTexts:
        self.calls += 1
        if self.calls == 2:
            self._engine.may_run.set()
        return super().encode_batch(*arguments, **options)


@pytest.fixture
def small_windows(monkeypatch) -> None:
    monkeypatch.setattr(pipeline, "_FIRST_WINDOW", RunLimit(16, 250_000))
    monkeypatch.setattr(pipeline, "_WINDOW", RunLimit(32, 250_000))


@pytest.fixture
def slow(tiny_bundle: Path, tokenizer: M3Tokenizer) -> Iterator[tuple[M3Encoder, Slow, Counting]]:
    bundle = Bundle.open(tiny_bundle)
    variant = bundle.variant("onnx-fp32")
    engine = Slow(open_engine(bundle, variant, 1))
    counting = Counting(tokenizer, engine)
    with M3Encoder(bundle, variant, counting, engine) as encoder:
        yield encoder, engine, counting


@pytest.mark.usefixtures("small_windows")
def test_the_next_window_is_tokenized_while_the_engine_runs(slow):
    encoder, engine, _ = slow
    encoder.encode(CORPUS)
    assert engine.has_waited, "the engine's first run was over before the second window was begun"


@pytest.mark.usefixtures("small_windows")
def test_one_window_ahead_and_no_more(slow):
    _, _, tokenizer = slow
    expected = [2, 3, 4, 5, 6, 7, 7]
    windows = pipeline.windows_ahead(
        map(len, CORPUS), lambda part: tokenizer.encode_batch(CORPUS[part.start : part.stop], 16)
    )
    for calls, _ in zip(expected, windows, strict=True):
        wait_until(lambda calls=calls: tokenizer.calls >= calls)
        time.sleep(0.05)  # enough to tokenize everything, if it wanted
        assert tokenizer.calls == calls


def test_a_small_input_needs_no_thread(slow):
    encoder, engine, tokenizer = slow
    engine.may_run.set()
    encoder.encode(CORPUS)
    assert tokenizer.calls == 1


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_windows_change_nothing(encoder, monkeypatch, batch_size):
    whole = encoder.encode(CORPUS, batch_size, 8, **ALL)
    monkeypatch.setattr(pipeline, "_FIRST_WINDOW", RunLimit(3, 250_000))
    monkeypatch.setattr(pipeline, "_WINDOW", RunLimit(11, 250_000))
    parts = encoder.encode(CORPUS, batch_size, 8, **ALL)
    np.testing.assert_allclose(parts.dense_vecs, whole.dense_vecs, atol=1e-6)
    assert parts.token_counts.tolist() == whole.token_counts.tolist()
    assert parts.truncated == whole.truncated > 0
    assert [list(weights) for weights in parts.lexical_weights] == [list(weights) for weights in whole.lexical_weights]
    for a, b in zip(parts.colbert_vecs, whole.colbert_vecs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.usefixtures("small_windows")
def test_texts_of_one_length_meet_across_windows(slow):
    """Every length occurs in each window, so batches that end with their window would be about as many as windows."""
    encoder, engine, _ = slow
    engine.may_run.set()
    lengths = encoder.encode(CORPUS).token_counts
    assert len(engine.shapes) == len(set(lengths.tolist()))


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("place", [0, 15, 16, 47, 48, 199])
def test_a_text_that_is_too_long_is_named_by_its_index_in_the_input(encoder, place):
    texts = ["few words"] * 200
    texts[place] = "too many words " * 20
    texts[199] = "too many words here, too " * 20
    with pytest.raises(TextTooLongError, match=f"^text {place} has .* tokens, the limit is 8") as caught:
        encoder.encode(texts, max_length=8, on_truncate="error")
    assert caught.value.index == place


def tokenizer_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("m3-ahead")]


@pytest.mark.usefixtures("small_windows")
def test_no_thread_is_left_whatever_happens(slow):
    encoder, engine, _ = slow
    engine.may_run.set()
    encoder.encode(CORPUS)
    assert tokenizer_threads() == []

    def fail(batch: TokenBatch, heads: Sequence[Head]) -> RawOutputs:
        raise EngineError("broken")

    engine.run = fail  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="broken"):
        encoder.encode(CORPUS)
    with pytest.raises(TextTooLongError):
        encoder.encode(CORPUS, max_length=3, on_truncate="error")
    assert tokenizer_threads() == []


@pytest.mark.usefixtures("small_windows")
def test_several_callers_at_once(encoder):
    expected = encoder.encode(CORPUS).dense_vecs
    got: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: got.append(encoder.encode(CORPUS).dense_vecs)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    assert all(np.allclose(vectors, expected, atol=1e-6) for vectors in got)
