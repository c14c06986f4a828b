"""Retrieval figures of three-head vectors: each question looks for its own paragraph among all of its set.

A part of `train_mini_m3_heads.py`; pure numpy, no files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3_models.arrays import FloatArray
from m3_models.checkpoint_files import Heads, Linear

IntArray = NDArray[np.int64]

UNUSED_IDS = (0, 1, 2, 3)
"""`<s> <pad> </s> <unk>`: never a lexical key, as in BGE-M3."""


@dataclass(frozen=True)
class Encoded:
    """Frozen encoder's output of S texts.

    Attributes:
        ids: S arrays of (L,) token ids, special tokens included.
        states: S arrays of (L, H) last hidden states, float16.
    """

    ids: Sequence[IntArray]
    states: Sequence[NDArray[np.float16]]

    def pick(self, indices: Sequence[int]) -> "Encoded":
        """Return the texts at these indices, in this order."""
        return Encoded([self.ids[i] for i in indices], [self.states[i] for i in indices])


@dataclass(frozen=True)
class Figure:
    """Mean over the questions of one set, with the standard error of the first."""

    ndcg_at_10: float
    standard_error: float
    recall_at_1: float


def figure(scores: FloatArray, gold: IntArray) -> Figure:
    """Score a ranking with one right paragraph per question; a tie counts against it.

    Args:
        scores: (questions, paragraphs).
        gold: (questions,) index of the right paragraph.

    >>> figure(np.array([[3.0, 1.0], [2.0, 1.0]], np.float32), np.array([0, 1])).recall_at_1
    0.5
    """
    right = scores[np.arange(len(gold)), gold][:, None]
    rank = (scores >= right).sum(1) - 1
    gains = np.where(rank < 10, 1 / np.log2(rank + 2), 0.0)
    error = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return Figure(round(float(gains.mean()), 3), round(float(error), 3), round(float((rank == 0).mean()), 3))


def dense_scores(questions: Encoded, paragraphs: Encoded) -> FloatArray:
    """Cosine of mean-pooled states, (questions, paragraphs)."""
    return _pooled(questions) @ _pooled(paragraphs).T


def sparse_scores(questions: Encoded, paragraphs: Encoded, head: Linear) -> FloatArray:
    """Dot products of lexical weights: relu of the head, largest per id, (questions, paragraphs)."""
    weights = [
        [np.maximum(_project(states, head)[:, 0], 0) for states in side.states] for side in (questions, paragraphs)
    ]
    return _lexical_dot(questions, paragraphs, *weights)


def bm25_scores(questions: Encoded, paragraphs: Encoded, *, k1: float = 1.2, b: float = 0.75) -> FloatArray:
    """BM25 over token ids (Robertson & Zaragoza 2009), counted here, (questions, paragraphs)."""
    column = _columns(questions, paragraphs)
    counts = np.zeros((len(paragraphs.ids), len(column)), np.float32)
    for row, ids in enumerate(paragraphs.ids):
        np.add.at(counts[row], [column[i] for i in ids.tolist() if i in column], 1)
    length = counts.sum(1, keepdims=True)
    found = (counts > 0).sum(0)
    idf = np.log1p((len(counts) - found + 0.5) / (found + 0.5))
    weight = idf * counts * (k1 + 1) / (counts + k1 * (1 - b + b * length / length.mean()))
    asked = np.zeros((len(questions.ids), len(column)), np.float32)
    for row, ids in enumerate(questions.ids):
        np.add.at(asked[row], [column[i] for i in ids.tolist() if i in column], 1)
    return np.asarray(asked @ weight.T, np.float32)


def colbert_scores(questions: Encoded, paragraphs: Encoded, head: Linear) -> FloatArray:
    """Mean over question tokens of the best paragraph token, `<s>` dropped, (questions, paragraphs)."""
    asked = [_unit(_project(states[1:], head)) for states in questions.states]
    starts = np.cumsum([0, *(len(rows) for rows in asked)])[:-1]
    lengths = np.array([len(rows) for rows in asked], np.float32)
    stacked = np.concatenate(asked)
    out = np.empty((len(asked), len(paragraphs.states)), np.float32)
    for column, states in enumerate(paragraphs.states):
        best = (stacked @ _unit(_project(states[1:], head)).T).max(1)
        out[:, column] = np.add.reduceat(best, starts) / lengths
    return out


def measure(
    questions: Encoded, paragraphs: Encoded, gold: IntArray, heads: Heads, rivals: Heads
) -> Mapping[str, Figure]:
    """Return one figure per way of scoring.

    Args:
        questions: Q held-out questions.
        paragraphs: P paragraphs.
        gold: (Q,) index of each question's paragraph.
        heads: The trained heads.
        rivals: Random heads of the same shapes.
    """
    dense = dense_scores(questions, paragraphs)
    sparse = sparse_scores(questions, paragraphs, heads.sparse)
    colbert = colbert_scores(questions, paragraphs, heads.colbert)
    scores = {
        "dense": dense,
        "sparse": sparse,
        "colbert": colbert,
        "hybrid 1/.3/1": dense + 0.3 * sparse + colbert,
        "sparse, random head": sparse_scores(questions, paragraphs, rivals.sparse),
        "colbert, random head": colbert_scores(questions, paragraphs, rivals.colbert),
        "BM25 on the same ids": bm25_scores(questions, paragraphs),
    }
    return {name: figure(values, gold) for name, values in scores.items()}


def _project(states: NDArray[np.float16], head: Linear) -> FloatArray:
    return np.asarray(states.astype(np.float32) @ head.weight.T + head.bias, np.float32)


def _unit(rows: FloatArray) -> FloatArray:
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.maximum(norms, 1e-12), np.float32)


def _pooled(texts: Encoded) -> FloatArray:
    return _unit(np.stack([states.astype(np.float32).mean(0) for states in texts.states]))


def _columns(questions: Encoded, paragraphs: Encoded) -> dict[int, int]:
    """Number the ids that both sides have: no other can add to a score."""
    shared = np.intersect1d(np.concatenate(questions.ids), np.concatenate(paragraphs.ids))
    return {int(id_): column for column, id_ in enumerate(np.setdiff1d(shared, UNUSED_IDS))}


def _lexical_dot(
    questions: Encoded,
    paragraphs: Encoded,
    question_weights: Sequence[FloatArray],
    paragraph_weights: Sequence[FloatArray],
) -> FloatArray:
    column = _columns(questions, paragraphs)
    sides = []
    for texts, weights in ((questions, question_weights), (paragraphs, paragraph_weights)):
        matrix = np.zeros((len(texts.ids), len(column)), np.float32)
        for row, (ids, values) in enumerate(zip(texts.ids, weights, strict=True)):
            kept = [(column[i], value) for i, value in zip(ids.tolist(), values.tolist(), strict=True) if i in column]
            for at, value in kept:
                matrix[row, at] = max(matrix[row, at], value)
        sides.append(matrix)
    return np.asarray(sides[0] @ sides[1].T, np.float32)
