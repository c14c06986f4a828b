"""Which texts run together, and how a batch is padded. Pure functions.

Texts are sorted by length so that a batch wastes little on padding; a batch holds at most `token_budget`
padded tokens, which is what bounds memory.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from m3_runtime.engines import TokenBatch

DEFAULT_TOKEN_BUDGET = 16384
"""Padded tokens per batch."""


def plan_batches(
    lengths: NDArray[np.int64], token_budget: int, batch_size: int
) -> Iterator[NDArray[np.int64]]:
    """Yield the text indices of each batch, longest texts first.

    Every index appears once. Within a batch B * T <= token_budget and B <= batch_size; a text longer than the
    budget is a batch of its own. Texts of equal length keep their order.

    Args:
        lengths: (S,) tokens per text, both special tokens included.
        token_budget: most padded tokens in a batch, at least 1.
        batch_size: most texts in a batch, at least 1.

    >>> [batch.tolist() for batch in plan_batches(np.array([3, 9, 4, 9]), token_budget=18, batch_size=8)]
    [[1, 3], [2, 0]]
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < order.size:
        longest = int(lengths[order[start]])
        size = max(1, min(batch_size, token_budget // longest))
        yield order[start : start + size]
        start += size


def pad_batch(ids: Sequence[NDArray[np.int32]], pad_id: int) -> TokenBatch:
    """Pad B id rows on the right to the longest of them.

    >>> pad_batch([np.array([0, 7, 2], np.int32), np.array([0, 2], np.int32)], pad_id=1).input_ids.tolist()
    [[0, 7, 2], [0, 2, 1]]
    """
    width = max(row.size for row in ids)
    input_ids = np.full((len(ids), width), pad_id, dtype=np.int64)
    attention_mask = np.zeros((len(ids), width), dtype=np.int64)
    for i, row in enumerate(ids):
        input_ids[i, : row.size] = row
        attention_mask[i, : row.size] = 1
    return TokenBatch(input_ids=input_ids, attention_mask=attention_mask)
