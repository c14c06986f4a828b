"""Scoring pairs of texts: distinct texts are encoded once, pairs are scored one by one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import Manifest
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encode.options import EncodeOptions
from m3_runtime.encode.pipeline import encode_tokens
from m3_runtime.engines import Engine
from m3_runtime.errors import InputError, TextTooLongError
from m3_runtime.scoring import PairScores, colbert_score
from m3_runtime.tokenizer import M3Tokenizer, TokenizedTexts, check_text


@dataclass(frozen=True)
class _Side:
    """The queries (or passages) of P pairs: distinct texts as ids, and which of them each pair has, (P,)."""

    tokenized: TokenizedTexts
    index: NDArray[np.int64]

    def lengths(self) -> NDArray[np.int64]:
        return self.tokenized.lengths[self.index]

    def part(self, pairs: slice) -> "_Side":
        """The same for some of the pairs."""
        texts, index = np.unique(self.index[pairs], return_inverse=True)
        ids = tuple(self.tokenized.ids[i] for i in texts)
        return _Side(TokenizedTexts(ids=ids, is_cut=self.tokenized.is_cut[texts]), index)

    def truncated(self) -> int:
        return int(self.tokenized.is_cut[self.index].sum())


def score_pairs(
    pairs: Sequence[tuple[str, str]],
    options: tuple[EncodeOptions, EncodeOptions],
    manifest: Manifest,
    tokenizer: M3Tokenizer,
    engine: Engine,
) -> PairScores:
    """Dense, sparse and ColBERT scores of P pairs, and how many of their texts were cut.

    A text that occurs in several pairs of a step is encoded once; the steps keep memory within the token
    budget.

    Args:
        pairs: P (query, passage) pairs, checked.
        options: of the queries and of the passages, all three heads on.
        manifest: of the bundle.
        tokenizer: the bundle's.
        engine: an open engine.

    Raises:
        TextTooLongError: a text is too long and the options say that this is an error; names the pair.
        EngineError: the engine refused a batch.
    """
    queries, passages = (
        _side(name, [pair[i] for pair in pairs], tokenizer, options[i]) for i, name in enumerate(("query", "passage"))
    )
    parts = []
    for step in _steps(queries.lengths() + passages.lengths(), options[0]):
        some_queries, some_passages = queries.part(step), passages.part(step)
        encoded_queries = encode_tokens(some_queries.tokenized, options[0], manifest, engine)
        encoded_passages = encode_tokens(some_passages.tokenized, options[1], manifest, engine)
        parts.append(_scores(encoded_queries, some_queries.index, encoded_passages, some_passages.index))
    return _joined(parts, queries.truncated() + passages.truncated())


def checked_pairs(pairs: object) -> tuple[list[tuple[str, str]], bool]:
    """The pairs as tuples, and whether there was just one pair rather than a list.

    Raises:
        InputError: something is not a pair of two texts; the pair is named by its index.
    """
    if isinstance(pairs, str | bytes | dict) or not hasattr(pairs, "__iter__"):
        raise InputError(f"expected a pair of texts or a list of pairs, got {type(pairs).__name__}")
    items = list(pairs)
    is_single = bool(items) and isinstance(items[0], str)
    return [_checked_pair(item, i) for i, item in enumerate([items] if is_single else items)], is_single


def _checked_pair(pair: object, index: int) -> tuple[str, str]:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        size = f" of {len(pair)}" if isinstance(pair, list | tuple) else ""
        raise InputError(f"pair {index} must be (query, passage), got {type(pair).__name__}{size}")
    check_text(pair[0], f"the query of pair {index}")
    check_text(pair[1], f"the passage of pair {index}")
    return pair[0], pair[1]


def _side(name: str, texts: Sequence[str], tokenizer: M3Tokenizer, options: EncodeOptions) -> _Side:
    places = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    distinct = list(places)
    try:
        tokenized = tokenizer.encode_batch(distinct, options.max_length, options.on_truncate)
    except TextTooLongError as error:
        pair = texts.index(distinct[error.index])
        raise TextTooLongError(f"the {name} of pair {pair}", pair, error.tokens, error.max_length) from error
    return _Side(tokenized, np.array([places[text] for text in texts], dtype=np.int64))


def _steps(lengths: NDArray[np.int64], options: EncodeOptions) -> Iterator[slice]:
    """Runs of pairs of at most batch_size pairs and, unless one pair alone is longer, token_budget tokens."""
    totals = np.concatenate(([0], np.cumsum(lengths)))  # totals[i]: tokens before pair i
    start = 0
    while start < lengths.size:
        fitting = int(np.searchsorted(totals, totals[start] + options.token_budget, side="right")) - 1
        end = max(start + 1, min(fitting, start + options.batch_size))
        yield slice(start, end)
        start = end


def _scores(queries: Encoding, query_of: Any, passages: Encoding, passage_of: Any) -> PairScores:
    assert queries.dense_vecs is not None and passages.dense_vecs is not None
    assert queries.sparse is not None and passages.sparse is not None
    assert isinstance(queries.colbert_vecs, list) and isinstance(passages.colbert_vecs, list)
    dense = np.einsum("ph,ph->p", queries.dense_vecs[query_of], passages.dense_vecs[passage_of])
    sparse, colbert = [], []
    for q, p in zip(query_of, passage_of, strict=True):
        sparse.append(_sparse_dot(queries.sparse.row(q), passages.sparse.row(p)))
        colbert.append(colbert_score(queries.colbert_vecs[q], passages.colbert_vecs[p]))
    return PairScores(dense, np.array(sparse, np.float32), np.array(colbert, np.float32))


def _sparse_dot(a: tuple[Any, Any], b: tuple[Any, Any]) -> np.float32:
    _, in_a, in_b = np.intersect1d(a[0], b[0], assume_unique=True, return_indices=True)
    return np.float32(a[1][in_a] @ b[1][in_b])


def _joined(parts: Sequence[PairScores], truncated: int) -> PairScores:
    nothing = np.empty(0, np.float32)
    return PairScores(
        dense=np.concatenate([nothing, *(part.dense for part in parts)]),
        sparse=np.concatenate([nothing, *(part.sparse for part in parts)]),
        colbert=np.concatenate([nothing, *(part.colbert for part in parts)]),
        truncated=truncated,
    )
