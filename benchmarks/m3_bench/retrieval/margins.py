"""Measuring margins: scores of each fine-tuning line's query with its positives and negatives, by each method."""

from collections.abc import Iterator, Sequence

import numpy as np

from m3_bench.documents import Margins, PairScoresOf
from m3_bench.machine import this_machine
from m3_bench.retrieval.bundles import BundleChoice, ChosenBundle
from m3_bench.retrieval.finetune import Example, FinetuneFile
from m3_bench.retrieval.hybrids import FloatArray, Hybrid, possible
from m3_bench.retrieval.search import maxsim
from m3_runtime import Encoding, M3Encoder
from m3_runtime.bundle.manifest import Head
from m3_runtime.io.progress import Progress
from m3_runtime.scoring import sparse_dot

_BLOCK_TEXTS = 128  # ColBERT rows of so many passages are held: 512 tokens each at C = 1024 are 270 MB
_DIGITS = 7


def measure_margins(
    file: FinetuneFile,
    choice: BundleChoice,
    hybrids: Sequence[Hybrid],
    progress: Progress,
    *,
    queries: int | None,
    max_length: int | None,
    threads: int,
) -> Margins:
    """Score every good line with every variant.

    Args:
        file: checked fine-tuning lines.
        choice: the variants; the first bundle is what others are compared with.
        hybrids: sums of heads; those that a bundle lacks a head for are left out.
        progress: steps, bars and bad lines.
        queries: score the first so many lines; None scores all.
        max_length: tokens of a text, both special tokens included; None is 512 or the model's limit.
        threads: of a run.

    Raises:
        M3Error: an encoder failed, or `max_length` is more than a model takes.
    """
    machine = this_machine()  # first: its load is what was before
    for bad in file.bad_lines:
        progress.say(f"{file.path}, line {bad.line} is left out: {bad.reason}")
    examples = file.examples[:queries]
    notes = []
    if len(examples) < len(file.examples):
        notes.append(f"only the first {len(examples)} of {len(file.examples)} good lines")
    if without := sum(not example.negatives for example in examples):
        notes.append(f"queries without negatives, which count in no figure: {without}")
    notes += choice.notes
    scores: list[PairScoresOf] = []
    for one, variant, encoder in choice.encoders(threads, progress):
        scorer = _Scorer(encoder, possible(hybrids, encoder.bundle.manifest.heads), max_length)
        by_line = [line for block in progress.bar(list(_blocks(examples)), "lines", "block") for line in scorer(block)]
        scores += _by_method(one, variant.name, scorer.methods, examples, by_line)
        if scorer.truncated:
            notes.append(f"{one.name}: {scorer.truncated} texts were longer and were cut")
    return Margins(
        machine=machine,
        source=file.path.name,
        source_sha256=file.sha256,
        lines=file.lines,
        bad_lines=file.bad_lines,
        query_lines=tuple(example.line for example in examples),
        scores=tuple(scores),
        notes=tuple(dict.fromkeys(notes)),
    )


class _Scorer:
    """Scores lines with one variant; `truncated` counts the texts that were cut until now."""

    def __init__(self, encoder: M3Encoder, hybrids: Sequence[Hybrid], max_length: int | None) -> None:
        self._encoder, self._hybrids, self._max_length = encoder, hybrids, max_length
        self._heads = tuple(head for head in Head if head in encoder.bundle.manifest.heads)
        self.methods = (*(head.value for head in self._heads), *(hybrid.name for hybrid in hybrids))
        self.truncated = 0

    def __call__(self, block: Sequence[Example]) -> Iterator[list[list[float]]]:
        """Yield per line, by method, the scores of its P passages, positives first."""
        queries = self._encoded([example.query for example in block])
        texts = list(dict.fromkeys(text for example in block for text in example.positives + example.negatives))
        passages = self._encoded(texts)
        index = {text: number for number, text in enumerate(texts)}
        for number, example in enumerate(block):
            indices = [index[text] for text in example.positives + example.negatives]
            of_head = {head: _scores(head, queries, number, passages, indices) for head in self._heads}
            rows = list(of_head.values())
            for hybrid in self._hybrids:
                total = hybrid.fused(of_head[Head.DENSE], of_head[Head.SPARSE], of_head.get(Head.COLBERT))
                rows.append(total / np.float32(sum(hybrid.weights)))  # as FlagEmbedding's compute_score
            yield [[round(score, _DIGITS) for score in row.astype(np.float64).tolist()] for row in rows]

    def _encoded(self, texts: list[str]) -> Encoding:
        encoding = self._encoder.encode(
            texts,
            max_length=self._max_length,
            return_sparse=Head.SPARSE in self._heads,
            return_colbert_vecs=Head.COLBERT in self._heads,
        )
        self.truncated += encoding.truncated
        return encoding


def _scores(head: Head, queries: Encoding, query: int, passages: Encoding, indices: Sequence[int]) -> FloatArray:
    """(P,) scores of a query with some passages, by one head."""
    match head:
        case Head.DENSE:
            assert queries.dense_vecs is not None and passages.dense_vecs is not None
            return np.asarray(passages.dense_vecs[list(indices)] @ queries.dense_vecs[query])
        case Head.SPARSE:
            assert queries.sparse is not None and passages.sparse is not None
            ours, theirs = queries.sparse.lexical_weights(query), map(passages.sparse.lexical_weights, indices)
            return np.array([sparse_dot(ours, weights) for weights in theirs], dtype=np.float32)
        case Head.COLBERT:
            assert queries.colbert_vecs is not None and passages.colbert_vecs is not None
            return maxsim(queries.colbert_vecs[query], [passages.colbert_vecs[index] for index in indices])


def _by_method(
    one: ChosenBundle,
    variant: str,
    methods: Sequence[str],
    examples: Sequence[Example],
    by_line: Sequence[list[list[float]]],
) -> Iterator[PairScoresOf]:
    for number, method in enumerate(methods):
        pairs = [(len(example.positives), rows[number]) for example, rows in zip(examples, by_line, strict=True)]
        positives = tuple(tuple(scores[:count]) for count, scores in pairs)
        negatives = tuple(tuple(scores[count:]) for count, scores in pairs)
        yield PairScoresOf(one.name, one.model, variant, method, positives, negatives)


def _blocks(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    """Lines whose passages are held together, at least one."""
    start, texts = 0, 0
    for number, example in enumerate(examples):
        count = len(example.positives) + len(example.negatives)
        if number > start and texts + count > _BLOCK_TEXTS:
            yield examples[start:number]
            start, texts = number, 0
        texts += count
    yield examples[start:]
