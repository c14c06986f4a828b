"""Scores of encoded texts, by FlagEmbedding's formulas, and of pairs of texts: each distinct text is encoded once.

One difference, on purpose: FlagEmbedding's `compute_score` compares each query token with the padding of the
passages in its batch as well, which are zero vectors, so a best similarity below 0 becomes 0 there whenever a
passage happens to be padded. Here padding is never seen, so a score does not depend on its neighbours in a
batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import ENCODER_HEADS
from m3_runtime.encode.colbert import PackedRows
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encode.options import EncodeOptions
from m3_runtime.errors import InputError, TextTooLongError
from m3_runtime.sequences import listed
from m3_runtime.tokenizer import M3Tokenizer, TokenizedTexts, check_text

_PACKED = {np.dtype(np.int8), np.dtype(np.uint8)}
LexicalWeights = Mapping[str, float]
TokenId = TypeVar("TokenId", int, str)


@dataclass(frozen=True)
class FusionWeights:
    """How much each head counts in a combined score."""

    dense: float = 1.0
    sparse: float = 1.0
    colbert: float = 1.0

    @classmethod
    def from_sequence(cls, weights: Sequence[float] | None) -> "FusionWeights":
        """From [dense, sparse, colbert], FlagEmbedding's order; None is [1, 1, 1].

        Raises:
            InputError: not three finite numbers, or their sum is 0.
        """
        if weights is None:
            return cls()
        try:
            values = [float(weight) for weight in listed(weights, "weights must be [dense, sparse, colbert]")]
        except (TypeError, ValueError) as error:
            raise InputError(f"weights must be three numbers [dense, sparse, colbert], got {weights!r}") from error
        if len(values) != 3 or not np.isfinite(values).all():
            raise InputError(f"weights must be three finite numbers [dense, sparse, colbert], got {weights!r}")
        largest = max(map(abs, values))
        if not largest or sum(value / largest for value in values) == 0:  # 1e308 three times is no overflow
            raise InputError(f"the weights {weights!r} sum to 0; the combined score divides by their sum")
        return cls(*values)


@dataclass(frozen=True)
class PairScores:
    """Scores of P pairs, (P,) float32 each.

    Of their 2P texts `truncated` were cut to the maximum length, and `out_of_vocabulary` have a piece that the bundle
    dropped.
    """

    dense: NDArray[np.float32]
    sparse: NDArray[np.float32]
    colbert: NDArray[np.float32]
    truncated: int = 0
    out_of_vocabulary: int = 0

    def combined(self, weights: FusionWeights) -> dict[str, list[float]]:
        """All five scores under FlagEmbedding's keys, in its order.

        `sparse+dense` is 0 where both weights are 0 (nothing is combined; FlagEmbedding gives NaN).
        """
        # relative to the largest, in float64: weights may be of any size
        given = np.array([weights.dense, weights.sparse, weights.colbert])
        d, s, c = given / max(float(np.abs(given).max()), np.finfo(np.float64).tiny)
        two = self.dense * d + self.sparse * s
        three = (two + self.colbert * c) / (d + s + c)
        sparse_dense = two / (d + s) if d + s != 0 else np.zeros_like(two)
        return {
            "colbert": self.colbert.tolist(),
            "sparse": self.sparse.tolist(),
            "dense": self.dense.tolist(),
            "sparse+dense": sparse_dense.astype(np.float32).tolist(),
            "colbert+sparse+dense": three.astype(np.float32).tolist(),
        }


def sparse_dot(a: Mapping[TokenId, float], b: Mapping[TokenId, float]) -> float:
    """Sum over shared token ids of the product of their weights.

    >>> sparse_dot({5: 0.5, 7: 0.25}, {5: 0.5, 9: 1.0})
    0.25
    """
    short, long = (a, b) if len(a) <= len(b) else (b, a)
    return float(sum(weight * long[token] for token, weight in short.items() if token in long))


@overload
def compute_lexical_matching_score(lexical_weights_1: LexicalWeights, lexical_weights_2: LexicalWeights) -> float: ...
@overload
def compute_lexical_matching_score(
    lexical_weights_1: Sequence[LexicalWeights], lexical_weights_2: Sequence[LexicalWeights]
) -> NDArray[np.float64]: ...
def compute_lexical_matching_score(
    lexical_weights_1: LexicalWeights | Sequence[LexicalWeights],
    lexical_weights_2: LexicalWeights | Sequence[LexicalWeights],
) -> float | NDArray[np.float64]:
    """Lexical score of two texts, or of every text of one list (N) with every text of another (M).

    Returns:
        A float for two mappings, (N, M) for two lists.

    Raises:
        InputError: one side is a mapping and the other a list, or either is something else.
    """
    a, b = lexical_weights_1, lexical_weights_2
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return sparse_dot(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        scores = np.array([[sparse_dot(x, y) for y in b] for x in a], dtype=np.float64)
        return scores.reshape(len(a), len(b))  # an empty list would lose its axis
    raise InputError(
        f"lexical weights must be two dicts or two lists of dicts, got {type(a).__name__} and {type(b).__name__}"
    )


def colbert_score(q_reps: NDArray[Any] | PackedRows, p_reps: NDArray[Any] | PackedRows) -> float:
    """Mean over query rows of the largest dot product with a passage row (MaxSim).

    Args:
        q_reps: (Lq, C), the query's rows.
        p_reps: (Lp, C), the passage's rows.

    Raises:
        InputError: not two matrices of the same width, one has no rows, or one holds packed bytes without their scales.
    """
    q, p = np.asarray(q_reps), np.asarray(p_reps)
    if {q.dtype, p.dtype} & _PACKED:
        raise InputError("8-bit ColBERT rows are packed values; give them as PackedRows, with dtype, scales and dim")
    if q.ndim != 2 or p.ndim != 2 or q.shape[1] != p.shape[1] or 0 in (q.shape[0], p.shape[0]):
        raise InputError(f"ColBERT vectors must be two (rows, C) matrices of one width, got {q.shape} and {p.shape}")
    similarity = q.astype(np.float32, copy=False) @ p.astype(np.float32, copy=False).T
    return float(similarity.max(axis=1).mean())


def checked_pairs(pairs: object) -> tuple[list[tuple[str, str]], bool]:
    """The pairs as tuples, and whether there was just one pair rather than a list.

    A (P, 2) array is P pairs; see `listed` for what else is taken.

    Raises:
        InputError: something is not a pair of two texts; the pair is named by its index.
    """
    items = listed(pairs, "expected a pair of texts or a list of pairs")
    is_single = bool(items) and isinstance(items[0], str)
    return [_checked_pair(item, i) for i, item in enumerate([items] if is_single else items)], is_single


def _checked_pair(pair: object, index: int) -> tuple[str, str]:
    expected = f"pair {index} must be (query, passage)"
    texts = listed(pair, expected)
    if len(texts) != 2:
        raise InputError(f"{expected}, got {type(pair).__name__} of {len(texts)}")
    query, passage = texts
    check_text(query, f"the query of pair {index}")
    check_text(passage, f"the passage of pair {index}")
    return query, passage


@dataclass(frozen=True)
class PairSide:
    """The queries (or passages) of P pairs: distinct texts as ids, and which of them each pair has, (P,)."""

    tokenized: TokenizedTexts
    index: NDArray[np.int64]

    @classmethod
    def of(cls, name: str, texts: Sequence[str], tokenizer: M3Tokenizer, options: EncodeOptions) -> "PairSide":
        """Tokenize each distinct text once.

        Raises:
            TextTooLongError: a text is too long and the options say that this is an error; names the pair.
        """
        places = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        distinct = list(places)
        try:
            tokenized = tokenizer.encode_batch(distinct, options.max_length, options.on_truncate)
        except TextTooLongError as error:
            pair = texts.index(distinct[error.index])
            raise TextTooLongError(f"the {name} of pair {pair}", pair, error.tokens, error.max_length) from error
        return cls(tokenized, np.array([places[text] for text in texts], dtype=np.int64))

    def lengths(self) -> NDArray[np.int64]:
        """(P,) tokens."""
        return self.tokenized.lengths[self.index]

    def part(self, pairs: range) -> "PairSide":
        """The same for some of the pairs."""
        texts, index = np.unique(self.index[pairs.start : pairs.stop], return_inverse=True)
        ids = tuple(self.tokenized.ids[i] for i in texts)
        return PairSide(TokenizedTexts(ids=ids, is_cut=self.tokenized.is_cut[texts]), index)

    def truncated(self) -> int:
        """How many of the P texts were cut."""
        return int(self.tokenized.is_cut[self.index].sum())

    def out_of_vocabulary(self) -> int:
        """How many of the P texts have a piece that the bundle dropped."""
        respelled = self.tokenized.is_respelled
        return 0 if respelled is None else int(respelled[self.index].sum())


def head_scores(
    queries: Encoding, query_of: NDArray[np.int64], passages: Encoding, passage_of: NDArray[np.int64]
) -> PairScores:
    """Scores of P pairs by each head, 0 by those that the encodings lack.

    `query_of` and `passage_of`, (P,) each, are which of the queries and of the passages each pair has.
    """
    dense, sparse, colbert = (np.zeros(len(query_of), np.float32) for _ in ENCODER_HEADS)
    pairs = list(zip(query_of.tolist(), passage_of.tolist(), strict=True))
    if queries.dense_vecs is not None and passages.dense_vecs is not None:
        dense = np.einsum("ph,ph->p", queries.dense_vecs[query_of], passages.dense_vecs[passage_of])
    if queries.sparse is not None and passages.sparse is not None:
        q_weights, p_weights = list(queries.sparse), list(passages.sparse)
        sparse[:] = [sparse_dot(q_weights[q], p_weights[p]) for q, p in pairs]
    if queries.colbert_vecs is not None and passages.colbert_vecs is not None:
        colbert[:] = [colbert_score(queries.colbert_vecs[q], passages.colbert_vecs[p]) for q, p in pairs]
    return PairScores(dense, sparse, colbert)
