"""Measuring margins: scores of each fine-tuning line's query with its positives and negatives, by each method."""

from collections.abc import Mapping, Sequence

import numpy as np

from m3_bench.documents import Margins, PairScoresOf
from m3_bench.errors import DatasetError
from m3_bench.machine import this_machine
from m3_bench.retrieval.bundles import BundleChoice
from m3_bench.retrieval.finetune import Example, FinetuneFile
from m3_bench.retrieval.hybrids import FloatArray, Hybrid, possible
from m3_runtime import M3Encoder
from m3_runtime.bundle.manifest import ENCODER_HEADS, Head
from m3_runtime.io.progress import Progress

_BLOCK_LINES = 64  # between two steps of the progress bar
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
    """Score every good line, or the first `queries`, with every variant; hybrids only where a bundle has their heads.

    `max_length` is in tokens of a text, both special tokens included; None is 512 or the model's limit.

    Raises:
        DatasetError: no line has negatives.
        M3Error: an encoder failed, or `max_length` is more than a model takes.
    """
    machine = this_machine()  # first: its load is what was before
    for bad in file.bad_lines:
        progress.say(f"{file.path}, line {bad.line} is left out: {bad.reason}")
    examples = file.examples[:queries]
    notes = []
    if len(examples) < len(file.examples):
        notes.append(f"only the first {len(examples)} of {len(file.examples)} good lines")
    without = sum(not example.negatives for example in examples)
    if without == len(examples):
        raise DatasetError(f"{str(file.path)!r}: not one query has negatives, so there is no margin to measure")
    if without:
        notes.append(f"queries without negatives, which count in no figure: {without}")
    notes += choice.notes
    scores: list[PairScoresOf] = []
    blocks = [examples[start : start + _BLOCK_LINES] for start in range(0, len(examples), _BLOCK_LINES)]
    for one, variant, encoder in choice.opened(M3Encoder, threads, progress):
        scored = [_scored(encoder, block, max_length) for block in progress.bar(blocks, "lines", "block")]
        if truncated := sum(cut for _, cut, _ in scored):
            notes.append(f"{one.name}: texts of pairs that were longer and were cut: {truncated}")
        if respelled := sum(lacking for _, _, lacking in scored):
            notes.append(f"{one.name}: texts of pairs with pieces that the bundle dropped: {respelled}")
        of_head = {head: np.concatenate([block[head] for block, _, _ in scored]) for head in scored[0][0]}
        for method, values in _methods(of_head, hybrids).items():
            scores.append(PairScoresOf(one.name, one.model, variant.name, method, *_by_line(examples, values)))
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


def _scored(
    encoder: M3Encoder, examples: Sequence[Example], max_length: int | None
) -> tuple[Mapping[Head, FloatArray], int, int]:
    """(P,) scores of all pairs of some lines by head; how many of their 2 P texts were cut, and have dropped pieces."""
    pairs = [(example.query, text) for example in examples for text in example.passages]
    if set(ENCODER_HEADS) <= set(encoder.bundle.manifest.heads):
        found = encoder.score_pairs(pairs, max_query_length=max_length, max_passage_length=max_length)
        scores = {Head.DENSE: found.dense, Head.SPARSE: found.sparse, Head.COLBERT: found.colbert}
        return scores, found.truncated, found.out_of_vocabulary
    queries, passages = (encoder.encode([pair[i] for pair in pairs], max_length=max_length) for i in (0, 1))
    assert queries.dense_vecs is not None and passages.dense_vecs is not None
    dense = np.einsum("ph,ph->p", queries.dense_vecs, passages.dense_vecs)
    lacking = queries.out_of_vocabulary + passages.out_of_vocabulary
    return {Head.DENSE: dense}, queries.truncated + passages.truncated, lacking


def _methods(of_head: Mapping[Head, FloatArray], hybrids: Sequence[Hybrid]) -> Mapping[str, FloatArray]:
    """Scores by method: heads, then hybrids, divided by the sum of their weights as FlagEmbedding's compute_score."""
    found = {head.value: scores for head, scores in of_head.items()}
    for hybrid in possible(hybrids, of_head):
        total = hybrid.fused(of_head[Head.DENSE], of_head[Head.SPARSE], of_head.get(Head.COLBERT))
        found[hybrid.name] = total / np.float32(sum(hybrid.weights))
    return found


def _by_line(examples: Sequence[Example], scores: FloatArray) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Each line's scores of positives, and each line's of negatives."""
    values = iter([round(score, _DIGITS) for score in scores.astype(np.float64).tolist()])
    lines = [
        [tuple(next(values) for _ in texts) for texts in (example.positives, example.negatives)] for example in examples
    ]
    return tuple(positives for positives, _ in lines), tuple(negatives for _, negatives in lines)
