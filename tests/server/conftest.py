"""Servers and what stands behind them, on tiny-random."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from running import Running, running


@pytest.fixture(scope="session")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with small limits, for everything that leaves it as it was."""
    words = ("--variant", "onnx-fp32", "--max-texts", "40", "--max-body-kib", "256", "--body-timeout-s", "5")
    with running(tiny_bundle, tmp_path_factory.mktemp("server"), *words) as started:
        yield started
