"""OpenVINO behind the server, in two workers: its answers are those of the encoder with the same variant."""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
from running import Running, events, running

from m3_runtime import Encoding, M3Encoder
from m3_runtime.server.serving import memory_mib
from patience import PATIENCE_S

VARIANT = ("--variant", "openvino-int8")


@pytest.fixture(scope="module")
def two(mini_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(mini_bundle, tmp_path_factory.mktemp("openvino"), *VARIANT, "--workers", "2") as started:
        events(started, "all_workers_serve", 1)
        yield started


@pytest.fixture(scope="module")
def same(mini_bundle: Path) -> Iterator[M3Encoder]:
    with M3Encoder.open(mini_bundle, variant="openvino-int8", threads=1) as opened:
        yield opened


def expected(encoder: M3Encoder, texts: list[str]) -> dict[str, np.ndarray]:
    found: Encoding = encoder.encode(texts, return_sparse=True, return_colbert_vecs=True)
    return {
        "dense_vecs": found.dense_vecs,
        "sparse_ids": found.sparse.ids,
        "sparse_weights": found.sparse.weights,
        "colbert_vecs": np.concatenate(found.colbert_vecs),
    }


def ask(server: Running, texts: list[str]) -> dict[str, np.ndarray]:
    """On a connection of its own: any worker may take it."""
    body = {"texts": texts, "format": "npz"}
    answer = httpx2.post(f"{server.url}/m3/encode", json=body, timeout=PATIENCE_S, trust_env=False)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-m3-variant"] == "openvino-int8"
    return dict(np.load(io.BytesIO(answer.content), allow_pickle=False))


def test_a_request_alone_gets_the_very_bits_of_the_encoder_from_every_worker(two, same, texts):
    wanted = expected(same, texts)
    workers = {line["pid"] for line in events(two, "serving", 2)}
    for _ in range(200):
        found = ask(two, texts)
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)
        if workers <= {line["pid"] for line in two.log() if line["event"] == "request"}:
            return
    raise AssertionError("one worker took 200 requests, the other none")


def test_short_texts_that_share_rows_get_the_very_bits(two, same):
    requests = [[f"{'river ' * (1 + n % 3)}number {n} of {part}" for part in range(6)] for n in range(16)]
    with ThreadPoolExecutor(len(requests)) as clients:
        answers = list(clients.map(lambda texts: ask(two, texts), requests))
    for texts, found in zip(requests, answers, strict=True):
        for name, array in expected(same, texts).items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_padding_of_packed_rows_is_counted(two):
    before, tokens = two.metric("m3_padding_tokens_total"), two.metric("m3_tokens_total")
    body = {"texts": [[0, 5, 2]] * 3, "heads": ["dense"], "format": "npz"}  # in a row each takes a step of 4 tokens
    assert httpx2.post(f"{two.url}/m3/encode", json=body, timeout=PATIENCE_S, trust_env=False).status_code == 200
    assert two.metric("m3_tokens_total") == tokens + 9
    assert two.metric("m3_padding_tokens_total") == before + 3


def test_what_it_says_about_memory_holds_when_it_has_run(two):
    """Its weights are packed by the time of telling; later come the buffers of longer texts."""
    (logged,) = events(two, "all_workers_serve", 1)
    ask(two, ["river " * 50])
    for line, resident_mib in zip(events(two, "serving", 2), sorted(logged["resident_mib"]), strict=True):
        assert memory_mib(line["pid"])["resident_mib"] == pytest.approx(resident_mib, rel=0.3)
        assert line["resident_mib"] == pytest.approx(resident_mib, rel=0.1)
    assert max(logged["resident_mib"]) < logged["together_mib"] < sum(logged["resident_mib"])
