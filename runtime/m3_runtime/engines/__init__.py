"""Engines: what runs a graph. One protocol, two implementations, chosen in `select`."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import Head
from m3_runtime.errors import EngineError

# A graph's optional input, (1,) int64: for how many leading tokens the last layer and the heads are computed; all by
# default. Graphs with CLS pooling have it, since their dense vectors need the first token alone.
KEPT_TOKENS = "kept_tokens"

# Optional inputs of a graph that packs short texts into rows; their shapes choose what is computed. `packed_texts`
# (N, 2) int64: row and column of the token that stands for each packed text. `whole_rows`, `padded_rows` (0 or 1,)
# int64: one entry where each row is a text of its own and all are of one length, or padded. The first two are empty by
# default.
PACKED_TEXTS = "packed_texts"
WHOLE_ROWS = "whole_rows"
PADDED_ROWS = "padded_rows"
NO_ROWS, ROWS = np.empty(0, np.int64), np.zeros(1, np.int64)
PACKING_DEFAULTS: Mapping[str, NDArray[np.int64]] = {
    PACKED_TEXTS: np.empty((0, 2), np.int64),
    WHOLE_ROWS: NO_ROWS,
    PADDED_ROWS: ROWS,
}


@dataclass(frozen=True)
class TokenBatch:
    """N texts in R rows of T tokens: each in a row of its own, or packed.

    Attributes:
        input_ids: (R, T) int64; the tokenizer's pad id where no text is.
        attention_mask: (R, T) int64; numbers the texts of a row: 1, 2, 3 …, 0 is padding. Texts are counted row by row.
        packed_texts: (N, 2) int64, row and column of the token that stands for each packed text; None if each row is a
            text, padded on the right.
        leading: the first token of every text is among so many leading tokens.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    packed_texts: NDArray[np.int64] | None = None
    leading: int = 1

    def texts(self) -> NDArray[np.int64]:
        """(R, T), which of the N texts each token is of; -1 at padding."""
        counts = self.attention_mask.max(axis=1)
        before = np.cumsum(counts) - counts
        return np.where(self.attention_mask > 0, before[:, None] + self.attention_mask - 1, -1)

    def packing(self) -> dict[str, NDArray[np.int64]]:
        """The optional inputs of a graph that packs."""
        if self.packed_texts is not None:
            return {PACKED_TEXTS: self.packed_texts, WHOLE_ROWS: NO_ROWS, PADDED_ROWS: NO_ROWS}
        if self.attention_mask.all():
            return {**PACKING_DEFAULTS, WHOLE_ROWS: ROWS, PADDED_ROWS: NO_ROWS}
        return dict(PACKING_DEFAULTS)


@dataclass(frozen=True)
class RawOutputs:
    """What a graph returned; None for a head that was not asked for.

    dense_vecs (N, H), token_weights (R, T), colbert_vecs (R, T-1, C), logits (N, 1), all float32.
    """

    dense_vecs: NDArray[np.float32] | None = None
    token_weights: NDArray[np.float32] | None = None
    colbert_vecs: NDArray[np.float32] | None = None
    logits: NDArray[np.float32] | None = None


POOLED_HEADS = frozenset((Head.DENSE, Head.SCORE))
"""Heads that read one token of a text."""


def is_pooled_only(heads: Collection[Head]) -> bool:
    """Whether a call needs the pooled token alone."""
    return POOLED_HEADS.issuperset(heads)


@dataclass(frozen=True)
class Opening:
    """How an engine is opened: memory, start and speed are traded here; results do not depend on it.

    Attributes:
        low_memory: hold less in memory and take longer for it.
        cache_file: where this variant's compiled form is kept from one opening to the next (OpenVINO only), or None.
        on_busy: called right before the long call into the engine, which leaves the interpreter to other threads.
        streams: how many runs at a time share the threads.
        takes_padded: batches with padded rows will come; the runtime makes none.
    """

    low_memory: bool = False
    cache_file: Path | None = None
    on_busy: Callable[[], None] = lambda: None
    streams: int = 1
    takes_padded: bool = False


DEFAULT_OPENING = Opening()
FLOAT_PRECISION = "fp32"
"""The precision of a variant that multiplies no int8."""


class Engine(Protocol):
    """Runs one graph. `run` may be called from several threads at once; `streams` of the calls compute at a time.

    Attributes:
        streams: runs that compute at a time.
        packed_tokens: texts of at most so many tokens are to be packed; 0 where the graph cannot.
    """

    streams: int
    packed_tokens: int

    def run(self, batch: TokenBatch, heads: Collection[Head]) -> RawOutputs:
        """Run the graph for the heads asked for.

        Raises:
            EngineError: the engine refused the batch.
        """
        ...

    def rest(self, least_tokens: int) -> None:
        """Give back what runs left in memory, if one since the last rest had at least so many tokens.

        For moments when nothing runs; a run that goes on meanwhile is not disturbed. Never raises.
        """
        ...

    def close(self) -> None:
        """Let go of the graph and its memory."""
        ...


def batch_failed(engine: str, batch: TokenBatch, error: Exception) -> EngineError:
    """What an engine raised on a batch, in our words; where it says that memory ran out, with the remedy.

    >>> batch = TokenBatch(np.ones((8, 512), np.int64), np.ones((8, 512), np.int64))
    >>> print(batch_failed("an engine", batch, RuntimeError("std::bad_alloc")))
    an engine failed on a batch of 8x512 tokens: std::bad_alloc; a smaller token_budget or batch_size needs less memory
    """
    shape = "x".join(map(str, batch.input_ids.shape))
    is_of_memory = isinstance(error, MemoryError) or "alloc" in str(error)
    remedy = "; a smaller token_budget or batch_size needs less memory" if is_of_memory else ""
    return EngineError(f"{engine} failed on a batch of {shape} tokens: {error}{remedy}")
