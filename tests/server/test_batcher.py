"""The batcher over a real engine; where order matters, the engine waits until the test lets it go."""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from m3_runtime import EngineError, M3Encoder
from m3_runtime.bundle.manifest import ENCODER_HEADS, Head
from m3_runtime.encode.encoding import Encoding
from m3_runtime.errors import DeadlineError, DrainingError, QueueFullError, RequestTooLargeError
from m3_runtime.server.batcher import Batcher
from m3_runtime.server.kept import KeptVectors
from m3_runtime.server.metrics import Metrics
from m3_runtime.server.queue import Ids, QueueLimits
from patience import PATIENCE_S

ALL = frozenset(ENCODER_HEADS)
DENSE = frozenset({Head.DENSE})


class Notes:
    """What a batcher has counted."""

    def __init__(self) -> None:
        self.metrics = Metrics(())

    def _value(self, name: str) -> int:
        return int(self.metrics.registry.get_sample_value(name) or 0)

    @property
    def waiting_tokens(self) -> int:
        return self._value("m3_queue_tokens")

    @property
    def runs(self) -> int:
        return self._value("m3_batch_texts_count")

    @property
    def texts(self) -> int:
        return self._value("m3_texts_total")

    @property
    def reused_texts(self) -> int:
        return self._value("m3_reused_texts_total")


class Gate:
    """A real encoder whose runs wait at a gate, and are noted in the order in which they came."""

    def __init__(self, encoder: M3Encoder) -> None:
        self._encoder = encoder
        self.open = threading.Event()
        self.lengths: list[int] = []

    def encode_ids(self, ids: Sequence[Ids], heads: frozenset[Head]) -> Encoding:
        self.lengths.append(ids[0].size)
        assert self.open.wait(PATIENCE_S)
        return self._encoder.encode_ids(ids, heads)


class Broken:
    """Refuses texts of seven tokens."""

    def __init__(self, encoder: M3Encoder) -> None:
        self._encoder = encoder

    def encode_ids(self, ids: Sequence[Ids], heads: frozenset[Head]) -> Encoding:
        if ids[0].size == 7:
            raise EngineError("no sevens")
        return self._encoder.encode_ids(ids, heads)


def ids(encoder: M3Encoder, texts: Sequence[str]) -> list[Ids]:
    return list(encoder.tokenizer.encode_batch(texts, 512).ids)


def of_length(*lengths: int) -> list[Ids]:
    return [np.array([0, *[7] * (length - 2), 2], np.int32) for length in lengths]


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def batcher(runner: M3Encoder | Gate | Broken, notes: Notes | None = None, **limits: int) -> Batcher:
    return Batcher(runner.encode_ids, QueueLimits(**limits), (notes or Notes()).metrics, KeptVectors(2**20, PATIENCE_S))


def assert_equal_bits(got: Encoding, encoder: M3Encoder, texts: Sequence[str]) -> None:
    expected = encoder.encode(list(texts), return_sparse=True, return_colbert_vecs=True)
    np.testing.assert_array_equal(got.token_counts, expected.token_counts)
    np.testing.assert_array_equal(got.dense_vecs, expected.dense_vecs)
    for name in ("indptr", "ids", "weights"):
        np.testing.assert_array_equal(getattr(got.sparse, name), getattr(expected.sparse, name))
    for mine, theirs in zip(got.colbert_vecs, expected.colbert_vecs, strict=True):
        np.testing.assert_array_equal(mine, theirs)


async def began(gate: Gate, runs: int) -> None:
    """Wait until so many runs are at the gate, and then for more that should not be."""
    async with asyncio.timeout(PATIENCE_S):
        while len(gate.lengths) < runs:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)


def test_one_request_gives_the_very_bits_of_the_encoder(encoder, texts):
    async def scenario() -> None:
        runs = batcher(encoder)
        found = await runs.encode(ids(encoder, texts), ALL, "a", 20)
        assert_equal_bits(found, encoder, texts)
        runs.close()

    run(scenario())


def test_requests_that_run_together_get_what_the_encoder_gives_the_same_batch(encoder):
    """Five requests for texts of one length; the first runs alone, the others wait and then share a run."""
    texts = ["one two three", "two one three", "three one two", "two three one", "one three two"]
    assert len({row.size for row in ids(encoder, texts)}) == 1
    gate, notes = Gate(encoder), Notes()

    async def scenario() -> None:
        runs = batcher(gate, notes)
        calls = [
            asyncio.create_task(runs.encode(ids(encoder, [text]), ALL, f"client {i}", 20))
            for i, text in enumerate(texts)
        ]
        await asyncio.sleep(0.05)
        gate.open.set()
        alone = encoder.encode_heads(texts[:1], ALL)
        together = encoder.encode_heads(texts[1:], ALL)  # the very batch
        first, *others = await asyncio.gather(*calls)
        np.testing.assert_array_equal(first.dense_vecs, alone.dense_vecs)
        np.testing.assert_array_equal(np.concatenate([found.dense_vecs for found in others]), together.dense_vecs)
        assert [found.lexical_weights for found in others] == [[weights] for weights in together.lexical_weights]
        for found, rows in zip(others, together.colbert_vecs, strict=True):
            np.testing.assert_array_equal(found.colbert_vecs[0], rows)
        runs.close()

    run(scenario())
    assert (notes.runs, notes.texts) == (2, 5)


def test_each_request_gets_the_heads_that_it_asked_for(encoder):
    async def scenario() -> None:
        runs = batcher(encoder)
        rows = ids(encoder, ["one two"])
        asked = (ALL, frozenset({Head.SPARSE}), frozenset({Head.COLBERT}), DENSE)
        calls = [runs.encode(rows, heads, "a", 20) for heads in asked]
        got = await asyncio.gather(*calls)
        seen = [tuple(part is not None for part in (v.dense_vecs, v.sparse, v.colbert_vecs)) for v in got]
        assert seen == [(True, True, True), (False, True, False), (False, False, True), (True, False, False)]
        runs.close()

    run(scenario())


def test_short_queries_run_while_a_long_passage_does(encoder):
    gate = Gate(encoder)

    async def scenario() -> None:
        runs = batcher(gate)
        passage = asyncio.create_task(runs.encode(of_length(500), DENSE, "a", 20))
        await asyncio.sleep(0)
        queries = [asyncio.create_task(runs.encode(of_length(n), DENSE, "a", 20)) for n in (300, 12, 10)]
        await began(gate, 2)
        assert gate.lengths == [500, 12]  # a second long run must wait
        gate.open.set()
        await asyncio.gather(passage, *queries)
        runs.close()

    run(scenario())


def test_streams_run_side_by_side_and_short_queries_beside_them(encoder):
    gate = Gate(encoder)

    async def scenario() -> None:
        runs = Batcher(gate.encode_ids, QueueLimits(), Metrics(()), KeptVectors(0, 1), streams=2)
        lengths = (500, 400, 300, 12)
        calls = [asyncio.create_task(runs.encode(of_length(n), DENSE, "a", PATIENCE_S)) for n in lengths]
        await began(gate, 3)
        assert sorted(gate.lengths) == [12, 400, 500]
        gate.open.set()
        await asyncio.gather(*calls)
        runs.close()

    run(scenario())


def test_the_engine_rests_when_nothing_runs(encoder):
    rested = threading.Event()

    async def scenario() -> None:
        runs = Batcher(encoder.encode_ids, QueueLimits(), Metrics(()), KeptVectors(0, 1), rest=lambda _: rested.set())
        await runs.encode(of_length(20), DENSE, "a", PATIENCE_S)
        assert not rested.is_set()
        assert await asyncio.to_thread(rested.wait, PATIENCE_S)
        runs.close()

    run(scenario())


def test_a_full_queue_refuses_and_says_when_to_come_back(encoder):
    gate = Gate(encoder)

    async def scenario() -> None:
        runs = batcher(gate, max_tokens=100)
        first = asyncio.create_task(runs.encode(of_length(90), DENSE, "a", 20))
        await asyncio.sleep(0)
        second = asyncio.create_task(runs.encode(of_length(90), DENSE, "a", 20))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match=r"90 tokens wait, the limit is 100; try again in \d+ s") as refused:
            await runs.encode(of_length(11), DENSE, "a", 20)
        assert refused.value.retry_after_s >= 1
        third = asyncio.create_task(runs.encode(of_length(10), DENSE, "a", 20))
        await asyncio.sleep(0.01)
        gate.open.set()
        assert [len(found.dense_vecs) for found in await asyncio.gather(first, second, third)] == [1, 1, 1]
        runs.close()

    run(scenario())


def test_a_request_larger_than_the_queue_is_the_callers_error(encoder):
    async def scenario() -> None:
        runs = batcher(encoder, max_tokens=100)
        with pytest.raises(RequestTooLargeError, match="has 120 tokens, the limit is 100; send it in parts"):
            await runs.encode(of_length(60, 60), DENSE, "a", 20)
        runs.close()

    run(scenario())


def test_a_wait_beyond_the_deadline_is_refused_at_the_door(encoder):
    gate = Gate(encoder)

    async def scenario() -> None:
        runs = batcher(gate)
        runs.estimate.ran(10, 1.0)  # ten tokens a second
        calls = [asyncio.create_task(runs.encode(of_length(100), DENSE, "a", 60)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match="it might take 26 s, the deadline is 20 s; try again in 5 s"):
            await runs.encode(of_length(110), DENSE, "a", 20)
        other = asyncio.create_task(runs.encode(of_length(10), DENSE, "b", 20))  # a new client is served earlier
        small = asyncio.create_task(runs.encode(of_length(10), DENSE, "a", 20))  # as is a smaller request
        await asyncio.sleep(0)
        assert not other.done() and not small.done()
        gate.open.set()
        await asyncio.gather(*calls, other, small)
        runs.close()

    run(scenario())


def test_who_finds_nothing_waiting_is_let_in_however_slow_the_engine_was(encoder):
    async def scenario() -> None:
        runs = batcher(encoder)
        runs.estimate.ran(1, 100.0)
        assert len((await runs.encode(of_length(10), DENSE, "a", 20)).dense_vecs) == 1
        runs.close()

    run(scenario())


def test_what_is_late_or_cancelled_leaves_the_queue(encoder):
    gate, notes = Gate(encoder), Notes()

    async def scenario() -> None:
        runs = batcher(gate, notes)
        running = asyncio.create_task(runs.encode(of_length(20), DENSE, "a", 20))
        await asyncio.sleep(0)
        cancelled = asyncio.create_task(runs.encode(of_length(30, 31), DENSE, "a", 20))
        late = asyncio.create_task(runs.encode(of_length(40), DENSE, "a", 0.05))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(QueueFullError, match=r"busy: the request was not done within 0\.05 s; try again in 1 s"):
            await late
        assert cancelled.cancelled()
        assert (notes.waiting_tokens, runs.is_running) == (0, True)
        gate.open.set()
        assert len((await running).dense_vecs) == 1
        runs.close()

    run(scenario())
    assert gate.lengths == [20]


def test_what_is_too_much_for_its_deadline_is_not_the_others_fault(encoder):
    gate = Gate(encoder)

    async def scenario() -> None:
        runs = batcher(gate)
        runs.estimate.ran(100, 1.0)
        running = asyncio.create_task(runs.encode(of_length(20), DENSE, "a", 20))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineError, match=r"not done within 0\.05 s; send less at a time, or allow more time"):
            await runs.encode(of_length(40), DENSE, "b", 0.05)
        gate.open.set()
        assert len((await running).dense_vecs) == 1
        runs.close()

    run(scenario())


def test_an_engine_that_fails_hurts_only_its_own_requests(encoder, texts):
    notes = Notes()

    async def scenario() -> None:
        runs = batcher(Broken(encoder), notes)
        bad = runs.encode(of_length(5, 7, 9), DENSE, "a", 20)
        good = runs.encode(ids(encoder, texts[:1]), ALL, "b", 20)
        failed, found = await asyncio.gather(bad, good, return_exceptions=True)
        assert isinstance(failed, EngineError)
        assert_equal_bits(found, encoder, texts[:1])
        assert notes.waiting_tokens == 0
        runs.close()

    run(scenario())


def test_a_query_beside_a_long_request_waits_for_the_batch_in_progress_alone(encoder):
    gate = Gate(encoder)

    async def scenario() -> None:
        runs = batcher(gate, batch_tokens=300)
        runs.estimate.ran(10, 1.0)  # the long request will take 50 minutes
        long = asyncio.create_task(runs.encode(of_length(*[300] * 100), DENSE, "a", 4000))
        await began(gate, 1)
        query = asyncio.create_task(runs.encode(of_length(280), DENSE, "a", 60))
        await asyncio.sleep(0)
        gate.open.set()
        assert len((await query).dense_vecs) == 1
        assert len((await long).dense_vecs) == 100
        runs.close()

    run(scenario())
    assert gate.lengths.index(280) == 1


def test_what_a_late_request_has_finished_is_there_for_its_retry(encoder):
    gate, notes = Gate(encoder), Notes()
    rows = of_length(*range(20, 30))
    expected = encoder.encode_ids(rows, DENSE).dense_vecs

    async def scenario() -> None:
        runs = batcher(gate, notes, batch_texts=1)
        gate.open.set()
        late = asyncio.create_task(runs.encode(rows, DENSE, "a", PATIENCE_S))
        while notes.runs < 5:
            await asyncio.sleep(0)
        gate.open.clear()
        finished = notes.runs
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
        gate.open.set()  # what was in the engine then is finished too, and kept
        while runs.is_running:
            await asyncio.sleep(0.01)
        before = notes.runs
        assert before > finished or before == 10
        other = await runs.encode(rows[:1], DENSE, "b", PATIENCE_S)  # nobody else gets any of it
        assert notes.runs == before + 1
        np.testing.assert_array_equal(other.dense_vecs, expected[:1])
        found = await runs.encode(rows, DENSE, "a", PATIENCE_S)
        np.testing.assert_array_equal(found.dense_vecs, expected)
        assert notes.reused_texts == before
        assert notes.runs == 1 + len(rows)
        await runs.encode(rows[:1], DENSE, "a", PATIENCE_S)  # what was answered is not kept
        assert notes.reused_texts == before
        runs.close()

    run(scenario())


def test_a_deadline_in_the_last_batch_loses_nothing(encoder):
    gate, notes = Gate(encoder), Notes()
    rows = of_length(20, 21, 22)

    async def scenario() -> None:
        runs = batcher(gate, notes, batch_texts=1)
        runs.estimate.ran(10, 1.0)
        late = asyncio.create_task(runs.encode(rows, DENSE, "a", 2.0))
        gate.open.set()
        while len(gate.lengths) < len(rows):
            if len(gate.lengths) == len(rows) - 1:
                gate.open.clear()
            await asyncio.sleep(0)
        with pytest.raises(DeadlineError, match="done within 2 s, 2 of its texts were and are kept for a retry"):
            await late
        gate.open.set()
        while runs.is_running:
            await asyncio.sleep(0.01)
        assert len((await runs.encode(rows, DENSE, "a", PATIENCE_S)).dense_vecs) == 3
        assert (notes.reused_texts, notes.runs) == (3, 3)
        runs.close()

    run(scenario())


def test_a_closed_batcher_takes_nothing_more(encoder):
    async def scenario() -> None:
        runs = batcher(encoder)
        runs.close()
        with pytest.raises(DrainingError, match="about to stop"):
            await runs.encode(of_length(5), DENSE, "a", 20)

    run(scenario())
