"""One encoder, and our own small corpus with its judgements."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from m3_runtime import M3Encoder

# Haystack reads it when it is imported; without, its pipelines send their makers what ran.
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

LIBRARY = Path(__file__).parents[2] / "benchmarks" / "data" / "multilingual"


@pytest.fixture(scope="session")
def encoder(mini_bundle: Path) -> Iterator[M3Encoder]:
    with M3Encoder.open(mini_bundle, variant="onnx-fp32", threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def in_int8(mini_bundle: Path) -> Iterator[M3Encoder]:
    """Another variant of the same model."""
    with M3Encoder.open(mini_bundle, variant="onnx-int8", threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def stranger(tiny_bundle: Path) -> Iterator[M3Encoder]:
    """Another model."""
    with M3Encoder.open(tiny_bundle, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def library() -> list[tuple[str, str]]:
    """Fifteen English and Chinese passages: id and text."""
    lines = (LIBRARY / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["_id"], row["text"]) for row in rows if row["_id"].startswith(("en-", "zh-"))]


@pytest.fixture(scope="session")
def question() -> str:
    return "Who first climbed the second highest mountain on Earth?"


@pytest.fixture(scope="session")
def scores(encoder: M3Encoder, library: list[tuple[str, str]], question: str) -> dict[str, dict[str, float]]:
    """Our own scores of the question with every passage, by head and name."""
    pairs = encoder.score_pairs([(question, text) for _, text in library])
    names = [name for name, _ in library]
    return {
        head: dict(zip(names, getattr(pairs, head).tolist(), strict=True)) for head in ("dense", "sparse", "colbert")
    }
