from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Running, running

from m3_runtime import M3Encoder

TEXTS = [
    "What is BGE M3?",
    "Defination of BM25",
    "",
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction.",
    "日本語のテキストをトークン化する。",
    "😀 emoji   and blanks ",
    "один два три два один",
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return list(TEXTS)


@pytest.fixture(scope="session")
def encoder(tiny_bundle: Path) -> Iterator[M3Encoder]:
    """What the server's answers are held against."""
    with M3Encoder.open(tiny_bundle, variant="onnx-fp32", threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with small limits, for everything that leaves it as it was."""
    words = ("--variant", "onnx-fp32", "--max-texts", "40", "--max-body-kib", "256", "--body-timeout-s", "5")
    with running(tiny_bundle, tmp_path_factory.mktemp("server"), *words) as started:
        yield started
