import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from m3_runtime import Bundle, M3Encoder
from m3_runtime.tokenizer import M3Tokenizer

TEXTS = [
    "What is BGE M3?",
    "Defination of BM25",
    "",
    "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction.",
    "日本語のテキストをトークン化する。",
    "Ein Satz, der etwas länger ist und deshalb in einer anderen Länge gepolstert wird als die übrigen Sätze hier.",
    "😀 emoji   and blanks ",
    "один два три два один",
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return list(TEXTS)


@pytest.fixture(scope="session")
def encoder(tiny_bundle: Path) -> Iterator[M3Encoder]:
    with M3Encoder.open(tiny_bundle, variant="onnx-fp32", threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def tokenizer(tiny_bundle: Path) -> M3Tokenizer:
    bundle = Bundle.open(tiny_bundle)
    return M3Tokenizer.open(bundle.file(bundle.manifest.tokenizer.path), bundle.manifest.tokenizer)


@pytest.fixture
def bundle_copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to damage. Its files are hard links: replace them, never write into them."""
    copy = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, copy, copy_function=_link)
    return copy


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
