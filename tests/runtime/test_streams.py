"""Several runs at a time: the same results, in order, and never more of them than streams."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_runtime import InputError, M3Encoder
from m3_runtime.cli import main
from m3_runtime.engines.streams import checked_streams, in_streams
from patience import PATIENCE_S

ALL = {"return_sparse": True, "return_colbert_vecs": True}
VARIANTS = ["onnx-fp32", "onnx-int8", "openvino-int8"]
CORPUS = [" ".join(["word"] * (i * 7 % 29)) for i in range(60)]


@given(items=st.lists(st.integers(), max_size=20), streams=st.integers(1, 5))
def test_results_come_in_the_order_of_the_items(items, streams):
    assert list(in_streams(str, items, streams)) == [(item, str(item)) for item in items]


def test_as_many_run_at_a_time_as_there_are_streams():
    meeting, running = threading.Barrier(3), threading.Semaphore(3)

    def run(item: int) -> int:
        assert running.acquire(blocking=False), "a fourth one runs"
        meeting.wait(PATIENCE_S)  # for two others
        running.release()
        return item

    assert [result for _, result in in_streams(run, range(9), 3)] == list(range(9))


def test_nothing_is_begun_after_a_failure():
    begun = []

    def run(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise InputError("two")
        return item

    results = in_streams(run, range(1000), 2)
    with pytest.raises(InputError, match="two"):
        list(results)
    assert len(begun) <= 6


@pytest.mark.parametrize("variant", VARIANTS)
def test_streams_change_no_bit(tiny_bundle, variant):
    with (
        M3Encoder.open(tiny_bundle, variant=variant, threads=2) as one,
        M3Encoder.open(tiny_bundle, variant=variant, threads=2, streams=2) as two,
    ):
        first, second = (encoder.encode(CORPUS, 4, **ALL) for encoder in (one, two))
    assert np.array_equal(first.dense_vecs, second.dense_vecs)
    assert np.array_equal(first.sparse.ids, second.sparse.ids)
    assert np.array_equal(first.sparse.weights, second.sparse.weights)
    assert all(map(np.array_equal, first.colbert_vecs, second.colbert_vecs))


def test_streams_share_the_token_budget(tiny_bundle, monkeypatch):
    running, sizes = threading.Semaphore(2), []
    with M3Encoder.open(tiny_bundle, variant="onnx-fp32", threads=2, streams=2) as encoder:
        run = encoder.engine.run

        def watched(batch, heads):
            assert running.acquire(blocking=False)
            sizes.append(batch.input_ids.size)
            try:
                return run(batch, heads)
            finally:
                running.release()

        monkeypatch.setattr(encoder.engine, "run", watched)
        found = encoder.encode(["three words here"] * 60, token_budget=100)
    assert 25 < max(sizes) <= 50
    assert sum(sizes) == sum(found.token_counts)


@pytest.mark.parametrize(
    ("streams", "message"),
    [(0, "from 1 to the number of threads, which is 2, got 0"), (3, "got 3"), ("many", "'auto'"), (True, "'auto'")],
)
def test_a_number_that_cannot_be(tiny_bundle, streams, message):
    with pytest.raises(InputError, match=message):
        M3Encoder.open(tiny_bundle, variant="onnx-fp32", threads=2, streams=streams)


@given(threads=st.integers(1, 256))
def test_auto_shares_the_threads_evenly(threads):
    streams = checked_streams("auto", threads)
    assert 1 <= streams <= threads
    assert threads % streams == 0


@pytest.mark.parametrize("streams", ["1", "2", "auto"])
def test_the_command_takes_it(tiny_bundle, tmp_path, streams):
    source = tmp_path / "in.txt"
    source.write_text("".join(f"{text}\n" for text in CORPUS))
    out = tmp_path / "out.npz"
    words = ["encode", tiny_bundle, source, "-o", out, "--format", "npz", "--variant", "onnx-int8"]
    words += ["--threads", 2, "--batch-size", 4]
    assert main([*map(str, words), "--streams", streams]) == 0
    with M3Encoder.open(tiny_bundle, variant="onnx-int8", threads=2) as encoder, np.load(out) as found:
        assert np.array_equal(found["dense_vecs"], encoder.encode(CORPUS, 4).dense_vecs)


@pytest.mark.parametrize("streams", ["0", "some"])
def test_the_command_refuses_what_is_no_number(tiny_bundle, capsys, streams):
    with pytest.raises(SystemExit):
        main(["encode", str(tiny_bundle), "--streams", streams])
    assert "--streams" in capsys.readouterr().err
