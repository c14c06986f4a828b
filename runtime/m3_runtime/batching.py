"""Which texts run together. Pure functions.

A batch holds texts of one length, so nothing is padded. Padding would cost more than its tokens: it changes the last
bits of attention's sums, an activation near the edge of an INT8 step then falls to the other side, and the layers
multiply that until the same text alone and in a batch are only as close as INT8 is to FP32 (dense cosine 0.9991
measured, against 0.999999 without padding). Length, not company, decides what a text's vectors are.

What is lost is small: one text of 128 tokens keeps a few cores as busy as eight do, and short texts, which do gain
from company, share their length with many others in any large job.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3_runtime.engines import TokenBatch

DEFAULT_TOKEN_BUDGET = 16384
"""Tokens per batch; bounds memory."""

ENOUGH_TOKENS = 1024
"""A batch of so many tokens gains next to nothing from more of them."""


def plan_batches(lengths: NDArray[np.int64], token_budget: int, batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Yield the text indices of each batch, longest texts first.

    Every index appears once. All texts of a batch have the same length T; B * T <= token_budget and B <= batch_size,
    but a text longer than the budget is a batch of its own. Texts of equal length keep their order.

    Args:
        lengths: (S,) tokens per text, both special tokens included.
        token_budget: most tokens in a batch, at least 1.
        batch_size: most texts in a batch, at least 1.

    >>> [batch.tolist() for batch in plan_batches(np.array([3, 9, 4, 9, 9]), token_budget=18, batch_size=8)]
    [[1, 3], [4], [2], [0]]
    """
    order = np.argsort(-lengths, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1)
    for group in groups:
        if group.size:
            size = max(1, min(batch_size, token_budget // int(lengths[group[0]])))
            yield from (group[start : start + size] for start in range(0, group.size, size))


@dataclass(frozen=True)
class Rows:
    """B texts that run together: their indices among all texts, (B,), and their ids."""

    indices: NDArray[np.int64]
    ids: tuple[NDArray[np.int32], ...]


class Waiting:
    """Texts that come window by window and wait until enough of their length are there.

    Full batches leave as soon as they can. What is left of a length waits for the next window if a batch of it would
    not keep the engine busy. So company across windows is found, and little waits: fewer than `ENOUGH_TOKENS` of each
    length.
    """

    def __init__(self, token_budget: int, batch_size: int) -> None:
        """Nothing waits yet.

        Args:
            token_budget: most tokens in a batch, at least 1.
            batch_size: most texts in a batch, at least 1.
        """
        self._limits = (token_budget, batch_size)
        self._rows: dict[int, NDArray[np.int32]] = {}

    def add(self, start: int, ids: Sequence[NDArray[np.int32]]) -> Iterator[Rows]:
        """Take a window of texts, the first with index `start`; yield what can run now, longest texts first."""
        self._rows.update(enumerate(ids, start))
        for batch in self._planned():
            if self._is_enough(batch):
                yield self._taken(batch)

    def rest(self) -> Iterator[Rows]:
        """Yield all that still waits, longest texts first."""
        for batch in self._planned():
            yield self._taken(batch)

    def _planned(self) -> list[NDArray[np.int64]]:
        indices = np.fromiter(self._rows, np.int64, len(self._rows))
        lengths = np.fromiter((row.size for row in self._rows.values()), np.int64, len(self._rows))
        return [indices[batch] for batch in plan_batches(lengths, *self._limits)]

    def _is_enough(self, batch: NDArray[np.int64]) -> bool:
        (token_budget, batch_size), length = self._limits, self._rows[int(batch[0])].size
        is_full = batch.size >= batch_size or (batch.size + 1) * length > token_budget
        return is_full or batch.size * length >= ENOUGH_TOKENS

    def _taken(self, batch: NDArray[np.int64]) -> Rows:
        return Rows(batch, tuple(self._rows.pop(int(i)) for i in batch))


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
