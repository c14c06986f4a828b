"""`M3Reranker`: a cross-encoder's bundle, opened and ready to score pairs."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.batching import DEFAULT_TOKEN_BUDGET
from m3_runtime.encode.encoding import log_losses
from m3_runtime.encode.options import DEFAULT_BATCH_SIZE
from m3_runtime.encode.pipeline import encode_windows, windows_ahead
from m3_runtime.opened_model import OpenedModel
from m3_runtime.pairs import checked_sides, pair_limits, side_name, tokenized_pairs
from m3_runtime.tokenizer import OnTruncate, TokenizedTexts

SCORE_HEADS = frozenset((Head.SCORE,))


@dataclass(frozen=True)
class RerankScores:
    """Scores of P pairs.

    Attributes:
        scores: (P,) float32, before the sigmoid.
        token_counts: (P,) int64, tokens that were read, four special ones included.
        truncated: how many pairs were cut.
    """

    scores: NDArray[np.float32]
    token_counts: NDArray[np.int64]
    truncated: int

    def values(self, *, normalize: bool) -> list[float]:
        """The scores as FlagEmbedding's `compute_score` gives them; from 0 to 1 with `normalize`."""
        return (sigmoid(self.scores) if normalize else self.scores).tolist()

    def warn_of_cuts(self) -> None:
        """Log how many pairs were cut, where the result has no place for it."""
        remedy = "; raise max_length or query_max_length, or pass on_truncate='error'"
        log_losses(f"the {len(self.scores)} pairs that were scored", self.truncated, remedy=remedy)


def sigmoid(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores between 0 and 1, in the same order.

    >>> sigmoid(np.array([-1e3, 0, 1e3], np.float32)).tolist()
    [0.0, 0.5, 1.0]
    """
    small = np.exp(-np.abs(scores.astype(np.float64)))
    return np.where(scores < 0, small, 1.0) / (1.0 + small)


class M3Reranker(OpenedModel):
    """A cross-encoder on CPU, from a bundle: BAAI's bge-reranker-v2-m3, -base and -large, and fine-tunes of them.

    See `OpenedModel` for threads, pickling and forks. Use it as a context manager, or call `close` when done.

    >>> with M3Reranker.open("my-reranker") as reranker:  # doctest: +SKIP
    ...     reranker.compute_score([("What is BGE M3?", "A model."), ("What is BGE M3?", "A road.")], normalize=True)
    """

    _is_reranker: ClassVar[bool] = True
    called: ClassVar[str] = "reranker"

    def compute_score(
        self,
        sentence_pairs: Sequence[Sequence[str]] | Sequence[str],
        batch_size: int = DEFAULT_BATCH_SIZE,
        query_max_length: int | None = None,
        max_length: int | None = None,
        normalize: bool = False,
        *,
        token_budget: int = DEFAULT_TOKEN_BUDGET,
        on_truncate: OnTruncate | str = OnTruncate.TRUNCATE,
    ) -> list[float]:
        """Score (query, passage) pairs; higher is better.

        The result is FlagEmbedding's list, which has no place for how many pairs were cut. So the logger "m3_runtime"
        gets a warning with their number; `score_pairs` returns it.

        Args:
            sentence_pairs: P pairs, in a list or as a (P, 2) array, or one pair of two texts. No text may be empty.
            batch_size: most pairs that run together.
            query_max_length: tokens per query, without special tokens; None is three quarters of `max_length`.
            max_length: tokens per pair, its four special tokens included; None is 512 or, where the model takes fewer,
                the model's limit. The passage alone is cut to it.
            normalize: give the sigmoid of the scores, from 0 to 1.
            token_budget: most tokens that run together; memory follows it.
            on_truncate: "truncate" cuts longer texts and logs how many, "error" refuses them.

        Returns:
            P floats; a list of one for one pair, as FlagEmbedding's.

        Raises:
            InputError: an argument or a pair is not what it must be; a pair is named by its index.
            TextTooLongError: on_truncate="error" and a text has too many tokens; it is named.
            NoRoomError: a query leaves no room for its passage; its pair is named.
            EngineError: the engine failed, or the reranker is closed.
        """
        found = self.score_pairs(
            sentence_pairs,
            batch_size,
            query_max_length,
            max_length,
            token_budget=token_budget,
            on_truncate=on_truncate,
        )
        found.warn_of_cuts()
        return found.values(normalize=normalize)

    def score_pairs(
        self,
        sentence_pairs: Sequence[Sequence[str]] | Sequence[str],
        batch_size: int = DEFAULT_BATCH_SIZE,
        query_max_length: int | None = None,
        max_length: int | None = None,
        *,
        token_budget: int = DEFAULT_TOKEN_BUDGET,
        on_truncate: OnTruncate | str = OnTruncate.TRUNCATE,
    ) -> RerankScores:
        """`compute_score` as arrays, before the sigmoid, with the number of pairs that were cut.

        Arguments and errors are those of `compute_score`.
        """
        options = self._options(SCORE_HEADS, batch_size=batch_size, token_budget=token_budget, on_truncate=on_truncate)
        limits = pair_limits(max_length, query_max_length, self.max_tokens, options.on_truncate)
        pairs = checked_sides(sentence_pairs)

        def tokenize(part: range) -> TokenizedTexts:
            of_part = pairs[part.start : part.stop]
            return tokenized_pairs(of_part, limits, self.tokenizer, side_name, part.start).as_texts()

        sizes = (len(query) + len(passage) for query, passage in pairs)
        with self._running() as engine, closing(windows_ahead(sizes, tokenize)) as windows:
            found = encode_windows(windows, len(pairs), options, self.bundle.manifest, engine)
        assert found.scores is not None
        return RerankScores(found.scores, found.token_counts, found.truncated)
