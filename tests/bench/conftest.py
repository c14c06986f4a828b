"""What the benchmark is tested with: texts of a wanted length, and small measurements on tiny-random."""

from pathlib import Path

import pytest

from m3_bench.bars.contenders import Setup
from m3_bench.peers import PeerSource
from m3_bench.texts import TextMaker
from m3_export.progress import Progress
from m3_runtime import Bundle
from m3_runtime.tokenizer import M3Tokenizer


@pytest.fixture
def setup(tiny_bundle: Path, tmp_path: Path) -> Setup:
    """What the bars are measured with, on tiny-random."""
    return Setup(
        bundle=Bundle.open(tiny_bundle),
        known={},
        checkpoint=None,
        work=tmp_path / "bars",
        peers=PeerSource(tmp_path / "peers", None),
        threads=1,
        is_quick=True,
        progress=Progress(quiet=True),
    )


@pytest.fixture
def texts(tokenizer: M3Tokenizer) -> TextMaker:
    """Makes texts of so many tokens."""
    return TextMaker(tokenizer)
