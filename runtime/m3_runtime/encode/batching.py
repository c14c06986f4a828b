"""Which texts run together, and how they are laid out in a batch. Pure functions.

Length alone decides how a text runs, so its vectors are the same alone, in any batch and in any order:

* Short texts are packed, many in a row, even if there is only one. The graph separates them, and batch mates do not
  change a bit of them. One pass over the weights serves texts of many lengths.
* Longer ones run in batches of one length, so nothing is padded. Padding would cost more than its tokens: it changes
  the last bits of attention's sums, an activation near the edge of an INT8 step then falls to the other side, and the
  layers multiply that until the same text alone and in a batch are only as close as INT8 is to FP32 (dense cosine
  0.9991 measured, against 0.999999 without padding). One text of 128 tokens keeps a few cores as busy as eight do.

Graphs that cannot pack have all their texts run by length.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import Pooling
from m3_runtime.engines import TokenBatch

DEFAULT_TOKEN_BUDGET = 8192
"""Tokens per batch; bounds memory, also what OpenVINO keeps of it for ever. More of them gain no time."""

ENOUGH_TOKENS = 1024
"""A batch of so many tokens gains next to nothing from more of them."""

ROW_TOKENS = 256
"""Most tokens of a packed row: attention's share grows with it, and a few cores gain little from more."""

_TOGETHER = 2
"""Packed texts come in steps of so many tokens: bfloat16 products add up in pairs, which must not depend on others."""


@dataclass(frozen=True)
class BatchLimits:
    """What a batch may hold.

    Attributes:
        token_budget: most tokens, padding included, at least 1; one text always runs whole.
        batch_size: most texts, at least 1.
        packed_tokens: texts of at most so many tokens are packed; 0 packs none.
    """

    token_budget: int
    batch_size: int
    packed_tokens: int = 0

    def kind(self, length: int) -> int:
        """What a text shares with those that it may run with: its length, or 0 if it is packed."""
        return length if length > self.packed_tokens else 0


@dataclass(frozen=True)
class Batch:
    """Which texts run together: R rows, each an array of text indices; several in a row only if they are packed."""

    rows: tuple[NDArray[np.int64], ...]
    is_packed: bool = False

    @property
    def indices(self) -> NDArray[np.int64]:
        """(N,) all its texts, row by row."""
        return np.concatenate(self.rows)


def plan_batches(lengths: NDArray[np.int64], limits: BatchLimits) -> Iterator[Batch]:
    """Yield batches, longest texts first and packed ones last.

    Every index appears once. Texts that are not packed run with those of their length, and those keep their order.

    Args:
        lengths: (S,) tokens per text, both special tokens included.
        limits: what a batch may hold.

    >>> [batch.indices.tolist() for batch in plan_batches(np.array([3, 9, 4, 9, 9]), BatchLimits(18, 8))]
    [[1, 3], [4], [2], [0]]
    >>> [batch.rows for batch in plan_batches(np.array([3, 9, 4, 9, 9]), BatchLimits(18, 8, packed_tokens=4))][-1]
    (array([0, 2]),)
    """
    kinds = np.where(lengths > limits.packed_tokens, lengths, 0)
    order = np.argsort(-kinds, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(kinds[order])) + 1)
    for group in groups:
        if group.size and kinds[group[0]]:
            size = max(1, min(limits.batch_size, limits.token_budget // int(lengths[group[0]])))
            for start in range(0, group.size, size):
                yield Batch(tuple(np.split(group[start : start + size], group[start : start + size].size)))
        elif group.size:
            yield from _packed(lengths, group, limits)


def _packed(lengths: NDArray[np.int64], texts: NDArray[np.int64], limits: BatchLimits) -> Iterator[Batch]:
    """Short texts in rows, and as many rows in a batch as the limits allow."""
    steps = _steps(lengths[texts])
    rows = fill_rows(steps, max(min(ROW_TOKENS, limits.token_budget), int(steps.max())), limits.batch_size)
    width = max(int(steps[row].sum()) for row in rows)
    batch: list[NDArray[np.int64]] = []
    for row in (texts[row] for row in rows):
        is_full = (len(batch) + 1) * width > limits.token_budget
        if batch and (is_full or sum(r.size for r in batch) + row.size > limits.batch_size):
            yield Batch(tuple(batch), is_packed=True)
            batch = []
        batch.append(row)
    yield Batch(tuple(batch), is_packed=True)


def fill_rows(lengths: NDArray[np.int64], most_tokens: int, most_texts: int) -> list[list[int]]:
    """Spread texts evenly over as few rows as will do, the longest first into the emptiest row (Graham, 1969).

    Args:
        lengths: (S,) tokens per text, each at most `most_tokens`.
        most_tokens: of a row.
        most_texts: of a row, at least 1.

    Returns:
        Indices, one list per row, none empty. Every index appears once.

    >>> fill_rows(np.array([5, 4, 3, 3]), most_tokens=10, most_texts=8)
    [[0, 3], [1, 2]]
    """
    order = np.argsort(-lengths, kind="stable").tolist()
    count = max(-(-int(lengths.sum()) // most_tokens), -(-len(order) // most_texts), 1)
    while True:
        rows: list[list[int]] = [[] for _ in range(count)]
        fill = [(0, number) for number in range(count)]
        for text in order:
            tokens, number = heapq.heappop(fill)
            rows[number].append(text)
            if tokens + lengths[text] > most_tokens:
                break
            if len(rows[number]) < most_texts:
                heapq.heappush(fill, (tokens + int(lengths[text]), number))
        else:
            return [row for row in rows if row]
        count += 1


@dataclass(frozen=True)
class Ready:
    """N texts that run now: their layout in a batch, and their ids in the order of `batch.indices`."""

    batch: Batch
    ids: tuple[NDArray[np.int32], ...]

    def tokens(self, pad_id: int, pooling: Pooling) -> TokenBatch:
        """The batch as the engine takes it."""
        if not self.batch.is_packed:
            return pad_batch(self.ids, pad_id)
        texts = iter(self.ids)
        return pack_batch([[next(texts) for _ in row] for row in self.batch.rows], pad_id, pooling)


class Waiting:
    """Texts that come window by window and wait until enough of their kind are there.

    Full batches leave as soon as they can. What is left of a kind waits for the next window if a batch of it would
    not keep the engine busy. So texts of one kind meet across windows, and little waits: fewer than `ENOUGH_TOKENS` of
    each kind.
    """

    def __init__(self, limits: BatchLimits) -> None:
        """Nothing waits yet."""
        self._limits = limits
        self._texts: dict[int, NDArray[np.int32]] = {}

    def add(self, start: int, ids: Sequence[NDArray[np.int32]]) -> Iterator[Ready]:
        """Take a window of texts, the first with index `start`; yield what can run now, longest texts first."""
        self._texts.update(enumerate(ids, start))
        for batch in self._planned():
            if self._is_enough(batch):
                yield self._taken(batch)

    def rest(self) -> Iterator[Ready]:
        """Yield all that still waits, longest texts first."""
        for batch in self._planned():
            yield self._taken(batch)

    def _planned(self) -> list[Batch]:
        indices = np.fromiter(self._texts, np.int64, len(self._texts))
        lengths = np.fromiter((row.size for row in self._texts.values()), np.int64, len(self._texts))
        return [
            Batch(tuple(indices[row] for row in batch.rows), batch.is_packed)
            for batch in plan_batches(lengths, self._limits)
        ]

    def _is_enough(self, batch: Batch) -> bool:
        tokens = [sum(self._texts[int(i)].size for i in row) for row in batch.rows]
        is_full = batch.indices.size >= self._limits.batch_size
        return is_full or sum(tokens) + max(tokens) > self._limits.token_budget or sum(tokens) >= ENOUGH_TOKENS

    def _taken(self, batch: Batch) -> Ready:
        return Ready(batch, tuple(self._texts.pop(int(i)) for i in batch.indices))


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


def pack_batch(rows: Sequence[Sequence[NDArray[np.int32]]], pad_id: int, pooling: Pooling) -> TokenBatch:
    """Put several texts in a row.

    The first two tokens of all texts of a row come first, then what is left of each: a dense-only call computes its
    last layer for the leading tokens alone. Texts are given as ids; `pooling` says which token stands for a text.

    >>> batch = pack_batch([[np.array([0, 7, 8, 2], np.int32), np.array([0, 9, 2], np.int32)]], 1, Pooling.CLS)
    >>> batch.input_ids.tolist(), batch.attention_mask.tolist()
    ([[0, 7, 0, 9, 8, 2, 2, 1]], [[1, 1, 2, 2, 1, 1, 2, 0]])
    """
    width = max(int(sum(_steps(np.array([text.size for text in row])))) for row in rows)
    input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    attention_mask = np.zeros((len(rows), width), dtype=np.int64)
    pooled = []
    for place, row in enumerate(rows):
        column = _TOGETHER * len(row)
        for number, text in enumerate(row):
            columns = np.arange(text.size) + column - _TOGETHER
            columns[:_TOGETHER] = np.arange(_TOGETHER) + _TOGETHER * number
            input_ids[place, columns] = text
            attention_mask[place, columns] = number + 1
            pooled.append((place, columns[-1] if pooling is Pooling.LAST_TOKEN else columns[0]))
            column += int(_steps(np.array(text.size))) - _TOGETHER
    leading = _TOGETHER * max(len(row) for row in rows)
    return TokenBatch(input_ids, attention_mask, np.array(pooled, np.int64), leading)


def _steps(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Lengths in a packed row: whole steps."""
    return lengths + -lengths % _TOGETHER
