"""Engines: what runs a graph. One protocol, two implementations, chosen in `select`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from m3_runtime.manifest import Head

# A graph's optional input, (1,) int64: for how many leading tokens the last layer and the heads are computed; all by
# default. Graphs with CLS pooling have it, since their dense vectors need the first token alone.
KEPT_TOKENS = "kept_tokens"
FIRST_TOKEN = np.ones(1, np.int64)
FIRST_TOKEN.flags.writeable = False


@dataclass(frozen=True)
class TokenBatch:
    """B texts padded to T tokens.

    `input_ids` and `attention_mask` are (B, T) int64; padding is on the right, with the tokenizer's pad id.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]


@dataclass(frozen=True)
class RawOutputs:
    """What a graph returned; None for a head that was not asked for.

    dense_vecs (B, H), token_weights (B, T), colbert_vecs (B, T-1, C), all float32.
    """

    dense_vecs: NDArray[np.float32] | None = None
    token_weights: NDArray[np.float32] | None = None
    colbert_vecs: NDArray[np.float32] | None = None


def is_dense_only(heads: Sequence[Head]) -> bool:
    """Whether a call needs the pooled token alone."""
    return set(heads) == {Head.DENSE}


class Engine(Protocol):
    """Runs one graph. `run` may be called from several threads at once; `streams` of the calls compute at a time."""

    streams: int

    def run(self, batch: TokenBatch, heads: Sequence[Head]) -> RawOutputs:
        """Run the graph for the heads asked for.

        Raises:
            EngineError: the engine refused the batch.
        """
        ...

    def close(self) -> None:
        """Let go of the graph and its memory."""
        ...
