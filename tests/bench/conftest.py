from pathlib import Path

import pytest

from m3_bench.contenders import Setup
from m3_bench.peers import PeerSource
from m3_bench.texts import TextMaker
from m3_export.progress import Progress
from m3_runtime import Bundle
from m3_runtime.tokenizer import M3Tokenizer


@pytest.fixture
def setup(tiny_bundle: Path, tmp_path: Path) -> Setup:
    return Setup(
        balanced=Bundle.open(tiny_bundle),
        strict=None,
        checkpoint=None,
        work=tmp_path / "bars",
        peers=PeerSource(tmp_path / "peers", None),
        threads=1,
        is_quick=True,
        progress=Progress(quiet=True),
    )


@pytest.fixture
def tokenizer(tiny_bundle: Path) -> M3Tokenizer:
    bundle = Bundle.open(tiny_bundle)
    return M3Tokenizer.open(bundle.file(bundle.manifest.tokenizer.path), bundle.manifest.tokenizer)


@pytest.fixture
def texts(tokenizer: M3Tokenizer) -> TextMaker:
    return TextMaker(tokenizer)
