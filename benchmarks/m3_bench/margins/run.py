"""Measuring margins: a fine-tuning file and bundles."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from m3_bench.documents import Margins, PairScoresOf
from m3_bench.machine import this_machine
from m3_bench.margins.score import PairScorer
from m3_bench.retrieval.datasets.finetune import Example, FinetuneFile, read_finetune
from m3_bench.retrieval.methods import Hybrid
from m3_bench.retrieval.variants import Choice, Chosen, choose, notes_on_heads
from m3_export.progress import Progress
from m3_runtime import M3Encoder
from m3_runtime.bundle.manifest import Variant


@dataclass(frozen=True)
class MarginsWish:
    """What is measured.

    Attributes:
        source: a fine-tuning file.
        bundles: folders, each of another name; the first is what others are compared with.
        variants: names; None takes all that run here.
        hybrids: sums of heads.
        queries: most lines to score; None is all.
        max_length: tokens of a text, both special tokens included; None is 512 or the model's limit.
        threads: of a run.
    """

    source: Path
    bundles: tuple[Path, ...]
    variants: tuple[str, ...] | None
    hybrids: tuple[Hybrid, ...]
    queries: int | None
    max_length: int | None
    threads: int


def run(wish: MarginsWish, progress: Progress) -> Margins:
    """Score every good line with every variant.

    Raises:
        DatasetError: see `read_finetune`.
        M3Error: a bundle cannot be used; see `choose`.
    """
    machine = this_machine()  # first: its load is what was before
    file, choice = read_finetune(wish.source), choose(wish.bundles, wish.variants)
    for bad in file.bad_lines:
        progress.say(f"{file.path}, line {bad.line} is left out: {bad.reason}")
    examples = file.examples[: wish.queries]
    notes = [*_notes(file, examples), *choice.notes, *notes_on_heads(choice)]
    scores = _scores(choice, examples, wish, progress, notes)
    return Margins(
        machine=machine,
        source=file.path.name,
        source_sha256=file.sha256,
        lines=file.lines,
        bad_lines=file.bad_lines,
        query_lines=tuple(example.line for example in examples),
        scores=scores,
        notes=tuple(dict.fromkeys(notes)),
    )


def _scores(
    choice: Choice, examples: Sequence[Example], wish: MarginsWish, progress: Progress, notes: list[str]
) -> tuple[PairScoresOf, ...]:
    scores: list[PairScoresOf] = []
    for one in choice.chosen:
        for variant in one.variants:
            with progress.step(f"{one.name}, {variant.name}"):
                scores += _scores_of(one, variant, examples, wish, progress, notes)
    return tuple(scores)


def _scores_of(
    one: Chosen,
    variant: Variant,
    examples: Sequence[Example],
    wish: MarginsWish,
    progress: Progress,
    notes: list[str],
) -> list[PairScoresOf]:
    with M3Encoder.from_bundle(one.bundle, variant, wish.threads) as encoder:
        scorer = PairScorer(encoder, wish.hybrids, wish.max_length)
        found = scorer.scoring(examples, "lines", progress)
    if found.truncated:
        notes.append(f"{one.name}: {found.truncated} texts were longer and were cut")
    return [
        PairScoresOf(one.name, one.model, variant.name, row.method, row.positives, row.negatives)
        for row in found.methods
    ]


def _notes(file: FinetuneFile, examples: Sequence[Example]) -> list[str]:
    notes = []
    if len(examples) < len(file.examples):
        notes.append(f"only the first {len(examples)} of {len(file.examples)} good lines")
    without = sum(not example.negatives for example in examples)
    if without:
        notes.append(f"queries without negatives, which count in no figure: {without}")
    return notes
