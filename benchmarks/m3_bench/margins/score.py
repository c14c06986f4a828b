"""Scores of each query with its positives and negatives, under each head and hybrid."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3_bench.retrieval.datasets.finetune import Example
from m3_bench.retrieval.maxsim import maxsim
from m3_bench.retrieval.methods import Hybrid, possible
from m3_export.progress import Progress
from m3_runtime import Encoding, M3Encoder
from m3_runtime.bundle.manifest import Head
from m3_runtime.scoring import sparse_dot

Floats = NDArray[np.float32]
_BLOCK_TEXTS = 128  # ColBERT rows of so many passages are held: 512 tokens each at C = 1024 are 270 MB
_DIGITS = 7


@dataclass(frozen=True)
class MethodScores:
    """Scores under one head or hybrid; the n-th entry of each tuple is the n-th query's."""

    method: str
    positives: tuple[tuple[float, ...], ...]
    negatives: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class LineScores:
    """Scores of one query with its passages, positives first: (M, P) for M methods."""

    positives: int
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class Scoring:
    """All methods' scores, and how many texts were cut."""

    methods: tuple[MethodScores, ...]
    truncated: int


@dataclass(frozen=True)
class PairScorer:
    """An encoder, and how its scores are added up; hybrids whose heads are missing are left out."""

    encoder: M3Encoder
    hybrids: tuple[Hybrid, ...]
    max_length: int | None

    @property
    def heads(self) -> tuple[Head, ...]:
        """The heads that are scored."""
        return tuple(head for head in Head if head in self.encoder.bundle.manifest.heads)

    @property
    def methods(self) -> tuple[str, ...]:
        """Heads and hybrids, in the order of scores."""
        fitting = possible(self.hybrids, self.heads)
        return (*(head.value for head in self.heads), *(hybrid.name for hybrid in fitting))

    def scoring(self, examples: Sequence[Example], title: str, progress: Progress) -> Scoring:
        """Score every line, a block of lines at a time.

        Args:
            examples: at least one.
            title: of the progress bar.
            progress: where the bar goes.

        Raises:
            M3Error: the encoder failed, or `max_length` is more than the model takes.
        """
        lines: list[LineScores] = []
        truncated = 0
        for block in progress.bar(list(_blocks(examples)), title, unit="block"):
            queries = self._encode([example.query for example in block])
            texts = list(dict.fromkeys(text for example in block for text in _passages(example)))
            passages = self._encode(texts)
            place = {text: number for number, text in enumerate(texts)}
            truncated += queries.truncated + passages.truncated
            for number, example in enumerate(block):
                places = [place[text] for text in _passages(example)]
                lines.append(LineScores(len(example.positives), self._scores(queries, number, passages, places)))
        return Scoring(tuple(_of_method(name, row, lines) for row, name in enumerate(self.methods)), truncated)

    def _encode(self, texts: list[str]) -> Encoding:
        return self.encoder.encode(
            texts,
            max_length=self.max_length,
            return_sparse=Head.SPARSE in self.heads,
            return_colbert_vecs=Head.COLBERT in self.heads,
        )

    def _scores(self, queries: Encoding, query: int, passages: Encoding, places: list[int]) -> NDArray[np.float64]:
        of_head = {head: _head_scores(head, queries, query, passages, places) for head in self.heads}
        rows = list(of_head.values())
        for hybrid in possible(self.hybrids, self.heads):
            total = hybrid.fused(of_head[Head.DENSE], of_head[Head.SPARSE], of_head.get(Head.COLBERT))
            rows.append(total / np.float32(sum(hybrid.weights)))  # as FlagEmbedding's compute_score
        return np.stack(rows).astype(np.float64)


def _head_scores(head: Head, queries: Encoding, query: int, passages: Encoding, places: list[int]) -> Floats:
    match head:
        case Head.DENSE:
            assert queries.dense_vecs is not None and passages.dense_vecs is not None
            return np.asarray(passages.dense_vecs[places] @ queries.dense_vecs[query])
        case Head.SPARSE:
            assert queries.sparse is not None and passages.sparse is not None
            ours = queries.sparse.lexical_weights(query)
            theirs = (passages.sparse.lexical_weights(place) for place in places)
            return np.array([sparse_dot(ours, weights) for weights in theirs], dtype=np.float32)
        case Head.COLBERT:
            assert queries.colbert_vecs is not None and passages.colbert_vecs is not None
            return maxsim(queries.colbert_vecs[query], [passages.colbert_vecs[place] for place in places])


def _of_method(name: str, row: int, lines: Sequence[LineScores]) -> MethodScores:
    values = [(line.positives, [round(score, _DIGITS) for score in line.scores[row].tolist()]) for line in lines]
    return MethodScores(
        method=name,
        positives=tuple(tuple(scores[:count]) for count, scores in values),
        negatives=tuple(tuple(scores[count:]) for count, scores in values),
    )


def _passages(example: Example) -> tuple[str, ...]:
    return example.positives + example.negatives


def _blocks(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    start, texts = 0, 0
    for number, example in enumerate(examples):
        count = len(_passages(example))
        if number > start and texts + count > _BLOCK_TEXTS:
            yield examples[start:number]
            start, texts = number, 0
        texts += count
    yield examples[start:]
