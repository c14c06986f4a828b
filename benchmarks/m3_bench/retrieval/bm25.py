"""BM25, with bm25s, over any tokens."""

from collections.abc import Iterable, Sequence

import numpy as np

from m3_bench.retrieval.ranking import Ranking, best_above_zero
from m3_runtime.tokenizer import M3Tokenizer

WORDS, IDS = "BM25 words", "BM25 XLM-R ids"
K1, B = 0.9, 0.4
"""Pyserini's values, with which the baselines of MIRACL, MLDR and MKQA were made."""

Tokens = Sequence[Sequence[str]]


def search(documents: Tokens, queries: Iterable[Sequence[str]], most: int) -> Ranking:
    """Rank N documents for Q queries; a document that shares no token with the query is not found.

    Args:
        documents: tokens of each document.
        queries: tokens of each query.
        most: how many documents to keep.

    Returns:
        Places of documents, best first, per query.
    """
    from bm25s import BM25

    if not any(documents):
        return [np.empty(0, dtype=np.int64) for _ in queries]
    index = BM25(k1=K1, b=B, method="lucene")
    index.index([list(tokens) for tokens in documents], show_progress=False)
    found = []
    for tokens in queries:
        known = [token for token in tokens if token in index.vocab_dict]
        scores = index.get_scores(known) if known else np.zeros(len(documents), dtype=np.float32)
        found.append(best_above_zero(scores, most))
    return found


def ids_of(tokenizer: M3Tokenizer, texts: Sequence[str], max_length: int) -> Tokens:
    """The model's own tokens of each text, without the ids that carry no meaning, as decimal numbers."""
    unused = frozenset(tokenizer.info.unused_ids)
    rows = tokenizer.encode_batch(texts, max_length).ids
    return [[str(token) for token in row.tolist() if token not in unused] for row in rows]
