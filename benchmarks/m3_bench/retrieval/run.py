"""Measuring retrieval: a dataset, bundles, and every way of searching."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from m3_bench.documents import MethodRun, Retrieval
from m3_bench.machine import this_machine
from m3_bench.retrieval import bm25
from m3_bench.retrieval.bm25 import Tokens
from m3_bench.retrieval.datasets.labelled import Item, Labelled
from m3_bench.retrieval.datasets.layouts import DatasetWish, open_dataset
from m3_bench.retrieval.maxsim import candidate_scores
from m3_bench.retrieval.methods import Hybrid, possible
from m3_bench.retrieval.metrics import DEPTH, measured
from m3_bench.retrieval.search import UNION_DEPTH, Ranked, first_stage, second_stage
from m3_bench.retrieval.variants import Chosen, choose, notes_on_heads
from m3_bench.retrieval.vectors import TextEncoder
from m3_bench.retrieval.words import words_of
from m3_export.progress import Progress
from m3_runtime import M3Encoder
from m3_runtime.bundle.manifest import Head, Variant
from m3_runtime.tokenizer import M3Tokenizer

_WHOLE = 1 << 30  # tokens: BM25 sees whole texts
_QUERY_BYTES = 1 << 40  # queries are short: their ColBERT rows are all kept


@dataclass(frozen=True)
class RetrievalWish:
    """What is measured.

    Attributes:
        dataset: which, and how much of it.
        bundles: folders, each of another name.
        variants: names; None takes all that run here.
        hybrids: sums of heads.
        candidates: how many of dense's best ColBERT ranks.
        max_length: tokens of a text, both special tokens included; None is 512 or the model's limit.
        threads: of a run.
        colbert_bytes: most memory for ColBERT rows of documents.
    """

    dataset: DatasetWish
    bundles: tuple[Path, ...]
    variants: tuple[str, ...] | None
    hybrids: tuple[Hybrid, ...]
    candidates: int
    max_length: int | None
    threads: int
    colbert_bytes: int


def run(wish: RetrievalWish, progress: Progress) -> Retrieval:
    """Search and measure.

    Raises:
        DatasetError: see `open_dataset`.
        M3Error: a bundle cannot be used; see `choose`.
    """
    machine = this_machine()  # first: its load is what was before
    data, choice = open_dataset(wish.dataset), choose(wish.bundles, wish.variants)
    progress.say(f"{data.name}: {len(data.queries)} queries, {len(data.documents)} documents")
    runs, notes = [], [*data.notes, *choice.notes, *notes_on_heads(choice)]
    with progress.step("BM25"):
        runs += [_method_run("", "", found, data) for found in _bm25(data, choice.chosen[0])]
    for one in choice.chosen:
        for variant in one.variants:
            with progress.step(f"{one.name}, {variant.name}"):
                found, cut = _searched(one, variant, data, wish, progress)
            runs += [_method_run(one.name, variant.name, ranked, data) for ranked in found]
            notes += cut
    return Retrieval(
        machine=machine,
        models=choice.models,
        threads=wish.threads,
        dataset=data.facts,
        query_ids=tuple(query.id for query in data.queries),
        settings=_settings(wish),
        methods=tuple(runs),
        notes=tuple(dict.fromkeys(notes)),
    )


def _searched(
    one: Chosen, variant: Variant, data: Labelled, wish: RetrievalWish, progress: Progress
) -> tuple[tuple[Ranked, ...], list[str]]:
    """What each method found with one variant, and notes on texts that were cut."""
    hybrids = possible(wish.hybrids, one.bundle.manifest.heads)
    with M3Encoder.from_bundle(one.bundle, variant, wish.threads) as encoder:
        texts = TextEncoder(encoder, wish.max_length, progress)
        passages = _texts(data.documents)
        documents = texts.vectors(passages, "documents", wish.colbert_bytes)
        queries = texts.vectors(_texts(data.queries), "queries", _QUERY_BYTES)
        stage = first_stage(queries, documents, hybrids, wish.candidates)
        notes = _notes_on_cuts(one, len(passages), documents.truncated, len(data.queries), queries.truncated)
        if Head.COLBERT not in texts.heads:
            return stage.ranked, notes
        parts = texts.colbert_parts(passages, stage.wanted, documents.colbert)
        rows = [queries.colbert[number] for number in range(len(data.queries))]
        colbert = candidate_scores(rows, [left.places for left in stage.candidates], parts)
    return stage.ranked + second_stage(stage, colbert, hybrids), notes


def _bm25(data: Labelled, one: Chosen) -> tuple[Ranked, ...]:
    info = one.bundle.manifest.tokenizer
    tokenizer = M3Tokenizer.open(one.bundle.file(info.path), info)
    documents, queries = _texts(data.documents), _texts(data.queries)

    def found(name: str, corpus: Tokens, asked: Tokens) -> Ranked:
        return Ranked(name, bm25.search(corpus, asked, DEPTH))

    return (
        found(bm25.WORDS, [words_of(text) for text in documents], [words_of(text) for text in queries]),
        found(bm25.IDS, bm25.ids_of(tokenizer, documents, _WHOLE), bm25.ids_of(tokenizer, queries, _WHOLE)),
    )


def _method_run(bundle: str, variant: str, found: Ranked, data: Labelled) -> MethodRun:
    return MethodRun(bundle, variant, found.method, measured(found.ranking, data.relevant))


def _texts(items: Sequence[Item]) -> list[str]:
    return [item.text for item in items]


def _notes_on_cuts(one: Chosen, documents: int, cut_documents: int, queries: int, cut_queries: int) -> list[str]:
    counts = ((documents, cut_documents, "documents"), (queries, cut_queries, "queries"))
    return [f"{one.name}: {cut} of {all_} {what} were longer and were cut" for all_, cut, what in counts if cut]


def _settings(wish: RetrievalWish) -> Mapping[str, str]:
    return {
        "max_length": "512, or the model's limit if that is less" if wish.max_length is None else str(wish.max_length),
        "candidates of ColBERT": f"dense's best {wish.candidates}",
        "dense+sparse": f"union of the best {UNION_DEPTH} of each",
        "bm25": f"bm25s, Lucene's formula, k1 {bm25.K1}, b {bm25.B}, whole texts",
    }
