"""Measuring retrieval: a labelled dataset, bundles, and every way of searching."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from m3_bench.documents import MethodRun, Retrieval
from m3_bench.machine import this_machine
from m3_bench.retrieval import search
from m3_bench.retrieval.bundles import BundleChoice
from m3_bench.retrieval.datasets import Item, Labelled
from m3_bench.retrieval.hybrids import Hybrid, possible
from m3_bench.retrieval.reranking import PairScorer
from m3_bench.retrieval.search import DEPTH, UNION_DEPTH, Ranking
from m3_bench.retrieval.vectors import TextEncoder
from m3_runtime import M3Encoder
from m3_runtime.bundle.manifest import Head
from m3_runtime.io.progress import Progress

BM25 = "BM25 words"
RERANKED = "reranked"


@dataclass(frozen=True)
class SearchSettings:
    """How bundles are searched with."""

    hybrids: tuple[Hybrid, ...]  # sums of heads
    candidates: int  # how many of dense's best ColBERT ranks
    max_length: int | None  # tokens of a text, both special tokens included; None is 512 or the model's limit
    threads: int  # of a run
    documents_by: str = ""  # the variant that encodes the documents; "" for the one that encodes the queries
    reranked: int = 20  # documents of each ranking that a reranker orders, where there is one


def measure_retrieval(data: Labelled, choice: BundleChoice, settings: SearchSettings, progress: Progress) -> Retrieval:
    """Search and measure.

    Raises:
        M3Error: an encoder or reranker failed, or `max_length` is more than a model takes.
    """
    machine = this_machine()  # first: its load is what was before
    progress.say(f"{data.name}: {len(data.queries)} queries, {len(data.documents)} documents")
    notes = [*data.notes, *choice.notes]
    with progress.step("BM25"):
        documents = [*map(search.words_of, _texts(data.documents))]
        ranking = search.bm25(documents, map(search.words_of, _texts(data.queries)), DEPTH)
        runs = _method_runs("", "", {BM25: ranking}, data)
    rankings = {f"{RERANKED} {BM25}": ranking}
    is_alone = sum(not one.is_reranker for one in choice.chosen) == 1
    for one, variant, encoder in choice.encoders(settings.threads, progress):
        with one.opened(settings.documents_by, settings.threads, encoder) as writer:
            found, cut = _searched(encoder, writer, data, settings, progress)
        runs += _method_runs(one.name, variant.name, found, data)
        notes += [f"{one.name}: {note}" for note in cut]
        by = variant.name if is_alone else f"{one.name} {variant.name}"
        rankings |= {f"{RERANKED} {method}, {by}": ranking for method, ranking in found.items()}
    for one, variant, reranker in choice.rerankers(settings.threads, progress):
        scorer = PairScorer(reranker, settings.max_length, settings.reranked, progress)
        ordered = scorer.reranked(rankings, _texts(data.queries), _texts(data.documents))
        runs += _method_runs(one.name, variant.name, ordered.rankings, data)
        notes += [f"{one.name}: {note}" for note in ordered.notes]
    return Retrieval(
        machine=machine,
        models=choice.models,
        threads=settings.threads,
        dataset=data.facts,
        query_ids=tuple(query.id for query in data.queries),
        settings={
            "max_length": str(settings.max_length or "512, or the model's limit if that is less"),
            "candidates of ColBERT": f"dense's best {settings.candidates}",
            "dense+sparse": f"union of the best {UNION_DEPTH} of each",
            **({"documents encoded by": settings.documents_by} if settings.documents_by else {}),
            **({RERANKED: f"the best {settings.reranked} of each ranking"} if choice.has_reranker else {}),
            "bm25": f"bm25s, Lucene's formula, k1 {search.K1}, b {search.B}, whole texts",
        },
        methods=tuple(runs),
        notes=tuple(dict.fromkeys(notes)),
    )


def _searched(
    encoder: M3Encoder, writer: M3Encoder, data: Labelled, settings: SearchSettings, progress: Progress
) -> tuple[Mapping[str, Ranking], list[str]]:
    """What each method found, queries by `encoder`, documents by `writer`; and notes on texts that were cut."""
    texts, written = (TextEncoder(by, settings.max_length, progress) for by in (encoder, writer))
    hybrids = possible(settings.hybrids, texts.heads)
    passages, asked = _texts(data.documents), _texts(data.queries)
    documents, queries = written.vectors(passages, "documents"), texts.vectors(asked, "queries")
    stage = search.first_stage(queries, documents, hybrids, settings.candidates)
    notes = [
        f"{vectors.truncated} of {len(items)} {what} were longer and were cut"
        for vectors, items, what in ((documents, passages, "documents"), (queries, asked, "queries"))
        if vectors.truncated
    ]
    if Head.COLBERT not in texts.heads:
        return stage.ranked, notes
    wanted = stage.wanted.tolist()
    candidates = zip(wanted, written.colbert_rows([passages[n] for n in wanted], "candidates"), strict=True)
    rows = list(texts.colbert_rows(asked, "queries' ColBERT rows"))
    colbert = search.colbert_scores(rows, [left.indices for left in stage.candidates], candidates)
    return {**stage.ranked, **search.second_stage(stage, colbert, hybrids)}, notes


def _method_runs(bundle: str, variant: str, found: Mapping[str, Ranking], data: Labelled) -> list[MethodRun]:
    return [
        MethodRun(bundle, variant, method, search.measured(ranking, data.relevant)) for method, ranking in found.items()
    ]


def _texts(items: Sequence[Item]) -> list[str]:
    return [item.text for item in items]
