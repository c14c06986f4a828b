"""What the benchmark is tested with."""

import pytest

from m3_bench.texts import TextMaker
from m3_runtime.tokenizer import M3Tokenizer


@pytest.fixture
def texts(tokenizer: M3Tokenizer) -> TextMaker:
    """Makes texts of so many tokens."""
    return TextMaker(tokenizer)
