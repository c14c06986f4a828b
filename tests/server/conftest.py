"""Servers and what stands behind them, on tiny-random."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from in_process import served
from running import Running, running
from starlette.testclient import TestClient


@pytest.fixture(scope="session")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with small limits, for everything that leaves it as it was."""
    words = ("--variant", "onnx-fp32", "--max-texts", "40", "--max-body-kib", "256", "--body-timeout-s", "5")
    with running(tiny_bundle, tmp_path_factory.mktemp("server"), *words) as started:
        yield started


@pytest.fixture(scope="module")
def app(tiny_bundle: Path) -> Iterator[TestClient]:
    """The app in this process, under BGE-M3's name and one more."""
    with served(tiny_bundle, model_names=("BAAI/bge-m3", "embedder")) as client:
        yield client
