"""Measuring retrieval: a labelled dataset, bundles, and every search method."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_bench.documents import MethodRun, Retrieval
from m3_bench.machine import this_machine
from m3_bench.retrieval import search
from m3_bench.retrieval.bundles import BundleChoice
from m3_bench.retrieval.costs import TIMED_QUERIES, Cost, HeadIndex, median_ms
from m3_bench.retrieval.datasets import Item, Labelled
from m3_bench.retrieval.hybrids import FloatArray, Hybrid, possible
from m3_bench.retrieval.keywords import K1, B, Bm25, StaticVectors, TfIdf
from m3_bench.retrieval.reranking import PairScorer, fullest
from m3_bench.retrieval.search import DEPTH, UNION_DEPTH, Indices, Ranking
from m3_bench.retrieval.vectors import TextEncoder
from m3_runtime import M3Encoder, M3Reranker
from m3_runtime.bundle.manifest import Head
from m3_runtime.errors import ExtraNotInstalledError, InputError
from m3_runtime.io.progress import Progress

BM25, TF_IDF, STATIC = "BM25 words", "TF-IDF words", "word vectors"
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
    with progress.step(f"{TF_IDF}, {BM25}"):
        words = [*map(search.words_of, _texts(data.documents))]
        tf_idf, bm25 = TfIdf(words), Bm25(words)
        first, _, _ = _by_scores(TF_IDF, lambda text: tf_idf.scores(search.words_of(text)), tf_idf.nbytes, data)
        second, ranking, cost = _by_scores(BM25, lambda text: bm25.scores(search.words_of(text)), bm25.nbytes, data)
    runs, rankings, first_costs = [first, second], {f"{RERANKED} {BM25}": ranking}, {f"{RERANKED} {BM25}": cost}
    is_alone = sum(not one.is_reranker for one in choice.chosen) == 1
    for one, variant, encoder in choice.opened(M3Encoder, settings.threads, progress):
        with one.opened(settings.documents_by, settings.threads, encoder) as writer:
            found, costs, cut = _searched(encoder, writer, data, settings, progress)
        if one.name not in {run.bundle for run in runs}:
            static, note = _static_runs(one.name, encoder, data, settings, progress)
            runs, cut = [*runs, *static], [*cut, *note]
        runs += _method_runs(one.name, variant.name, found, data, costs)
        notes += [f"{one.name}: {note}" for note in cut]
        by = variant.name if is_alone else f"{one.name} {variant.name}"
        rankings |= {f"{RERANKED} {method}, {by}": ranking for method, ranking in found.items()}
        first_costs |= {f"{RERANKED} {method}, {by}": cost for method, cost in costs.items()}
    timed = fullest(rankings, settings.reranked)
    for one, variant, reranker in choice.opened(M3Reranker, settings.threads, progress):
        most = settings.max_length and min(settings.max_length, reranker.max_tokens)
        if most != settings.max_length:
            notes.append(f"{one.name}: it takes pairs of {most} tokens, fewer than the texts' {settings.max_length}")
        scorer = PairScorer(reranker, most, settings.reranked, progress)
        asked, passages = _texts(data.queries), _texts(data.documents)
        ordered = scorer.reranked(rankings, asked, passages)
        ms = scorer.query_ms(rankings[timed], asked, passages)
        costs = {name: replace(cost, query_ms=round(cost.query_ms + ms, 3)) for name, cost in first_costs.items()}
        runs += _method_runs(one.name, variant.name, ordered.rankings, data, costs)
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
            **(_reranking(settings.reranked, timed) if choice.has_reranker else {}),
            "bm25": f"bm25s, Lucene's formula, k1 {K1}, b {B}, whole texts",
            "ms a query": f"median of {TIMED_QUERIES}, one at a time, from text to ranking, exact search in memory",
            "index": "float32 dense, lexical weights with ids, float16 ColBERT rows, postings of words",
        },
        methods=tuple(runs),
        notes=tuple(dict.fromkeys(notes)),
    )


def _reranking(depth: int, timed: str) -> dict[str, str]:
    most = f"the best {depth} of {timed.removeprefix(f'{RERANKED} ')}, in which queries have most documents"
    return {
        RERANKED: f"the best {depth} of each ranking",
        "ms a query, reranked": f"its ranking's, and the reranker's for {most}",
    }


def _by_scores(
    method: str, scores_of: Callable[[str], FloatArray], index_bytes: int, data: Labelled, bundle: str = ""
) -> tuple[MethodRun, Ranking, Cost]:
    """By a method that gives every document a score; what has none above 0 is not found."""

    def ask(text: str) -> Indices:
        return search.best_above_zero(scores_of(text), DEPTH)

    texts = _texts(data.queries)
    ranking, cost = [ask(text) for text in texts], Cost(median_ms(ask, texts), index_bytes)
    return _method_runs(bundle, "", {method: ranking}, data, {method: cost})[0], ranking, cost


def _static_runs(
    bundle: str, encoder: M3Encoder, data: Labelled, settings: SearchSettings, progress: Progress
) -> tuple[list[MethodRun], list[str]]:
    """Searching with the model's word embeddings alone; or a note why not."""
    try:
        with progress.step(STATIC):
            index = StaticVectors(encoder, _texts(data.documents), settings.max_length)
            return [_by_scores(STATIC, index.scores, index.nbytes, data, bundle)[0]], []
    except (InputError, ExtraNotInstalledError) as error:
        return [], [f"{STATIC} were left out: {error}"]


def _searched(
    encoder: M3Encoder, writer: M3Encoder, data: Labelled, settings: SearchSettings, progress: Progress
) -> tuple[Mapping[str, Ranking], Mapping[str, Cost], list[str]]:
    """What each method found, queries by `encoder`, documents by `writer`, at what cost; and notes on texts cut."""
    texts, written = (TextEncoder(by, settings.max_length, progress) for by in (encoder, writer))
    hybrids = possible(settings.hybrids, texts.heads)
    passages, asked = _texts(data.documents), _texts(data.queries)
    documents, queries = written.vectors(passages, "documents"), texts.vectors(asked, "queries")
    stage = search.first_stage(queries, documents, hybrids, settings.candidates)
    notes = []
    for vectors, items, what in ((documents, passages, "documents"), (queries, asked, "queries")):
        if vectors.truncated:
            notes.append(f"{vectors.truncated} of {len(items)} {what} were longer and were cut")
        if lacking := vectors.out_of_vocabulary:
            notes.append(f"{lacking} of {len(items)} {what} have pieces that the bundle dropped")
    ranked, kept = dict(stage.ranked), dict[int, NDArray[Any]]()
    if Head.COLBERT in texts.heads:
        wanted = stage.wanted.tolist()
        timed = set(np.concatenate([left.indices for left in stage.candidates[:TIMED_QUERIES]]).tolist())
        rows = list(texts.colbert_rows(asked, "queries' ColBERT rows"))
        candidates = zip(wanted, written.colbert_rows([passages[n] for n in wanted], "candidates"), strict=True)
        watched = ((n, kept.setdefault(n, one) if n in timed else one) for n, one in candidates)
        colbert = search.colbert_scores(rows, [left.indices for left in stage.candidates], watched)
        ranked |= search.second_stage(stage, colbert, hybrids)
    index = HeadIndex(texts, documents, kept, settings.candidates)
    heads_of = {head.value: (head,) for head in texts.heads} | {hybrid.name: hybrid.heads for hybrid in hybrids}
    costs = {heads: index.cost(heads, asked) for heads in set(heads_of.values())}
    return ranked, {method: costs[heads] for method, heads in heads_of.items()}, notes


def _method_runs(
    bundle: str, variant: str, found: Mapping[str, Ranking], data: Labelled, costs: Mapping[str, Cost]
) -> list[MethodRun]:
    return [
        MethodRun(bundle, variant, method, search.measured(ranking, data.relevant), **vars(costs[method]))
        for method, ranking in found.items()
    ]


def _texts(items: Sequence[Item]) -> list[str]:
    return [item.text for item in items]
