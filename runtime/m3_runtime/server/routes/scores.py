"""Scores: /similarity, and rerank in the forms that clients speak: text-embeddings-inference's, Jina's and Cohere's.

`texts` is answered by a list of ranks with scores as they are: cosines, sums of lexical weights, means of MaxSim, or
in hybrid mode their weighted mean. `documents` is answered by an object, whose relevance is the same score cut off at 0
and 1: below 0 a passage has nothing to do with the query, above 1 sums of lexical weights alone can get. So scores of
different requests can be compared, and thresholds mean the same in both forms. The order is that of the scores.

Where a reranker is served, it scores unless `mode` or `weights` ask for the encoder's heads. Its relevance, and the
score of a rank, is the sigmoid of what it gives; with `raw_scores` a rank has what it gives.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any
from uuid import uuid4

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from m3_runtime.bundle.manifest import ENCODER_HEADS, Head
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encode.options import checked_heads
from m3_runtime.errors import FieldError
from m3_runtime.reranker import sigmoid
from m3_runtime.scoring import FusionWeights, head_scores
from m3_runtime.server.admission import CALL
from m3_runtime.server.answers import (
    OUT_OF_VOCABULARY,
    OUT_OF_VOCABULARY_TEXTS,
    SCORED_BY,
    TRUNCATED,
    TRUNCATED_TEXTS,
    OpenAiRefusal,
    Refusal,
    answered_by,
    json_answer,
    refusals,
    text_headers,
)
from m3_runtime.server.routes.bodies import OneParseRoute, truncation_of
from m3_runtime.server.schemas import Reranked, RerankRequest, SimilarityRequest, TextOptions, TextRank, Texts
from m3_runtime.server.service import Service
from m3_runtime.tokenizer import check_text


def score_routes(service: Service) -> APIRouter:
    """POST /rerank, /v1/rerank, /v2/rerank; and /similarity where there are vectors."""
    routes = APIRouter(route_class=OneParseRoute)
    if service.has_encoder:
        _add_similarity(routes, service)

    async def rerank(body: RerankRequest, request: Request) -> Response:
        passages = body.documents if body.documents is not None else body.texts or []
        name = "texts" if body.documents is None else "documents"
        texts = _checked(body.query, "query", passages, name)
        if is_by_reranker := _is_by_reranker(body, service):
            _check_options(body, service.pair_max_length)
            truncation = truncation_of(body, service, cuts=True, of_pairs=True)
            found = await service.rerank(body.query, passages, name, truncation, request.scope[CALL])
            scored_by = [Head.SCORE]
        else:
            weights = _head_weights(body, service)
            _check_options(body, service.max_length)
            truncation, heads = truncation_of(body, service, cuts=True), frozenset(weights)
            score = partial(_scores, weights=weights)
            found = await service.score(texts, name, heads, truncation, request.scope[CALL], score)
            scored_by = [head for head in ENCODER_HEADS if head in weights]
        scores = found.scores
        best = sorted(range(len(scores)), key=lambda i: -scores[i])[: body.top_n or None]
        if is_by_reranker and not (body.raw_scores and body.documents is None):
            scores = sigmoid(np.array(scores, np.float32)).tolist()
        headers = {
            **text_headers(found.is_cut, found.is_respelled, "query"),
            SCORED_BY: ",".join(scored_by),
        }
        results = _results(body, best, scores, passages)
        if body.documents is None:
            return json_answer(results, headers)
        model = service.reranker_name if is_by_reranker else service.model_name
        return json_answer(_reranked(results, scored_by, model, found.tokens, headers), headers)

    for version in ("", "/v1", "/v2"):
        refused = refusals(OpenAiRefusal if version else Refusal)
        routes.post(
            f"{version}/rerank",
            summary="Passages by their score: a reranker's, or that of one head or all three",
            tags=["rerank"],
            responses={**refused, **answered_by(list[TextRank] | Reranked)},
            name=f"rerank_{version[1:]}" if version else "rerank",
        )(rerank)
    return routes


def _add_similarity(routes: APIRouter, service: Service) -> None:
    @routes.post(
        "/similarity",
        summary="Cosines of one sentence and others",
        tags=["text-embeddings-inference"],
        responses={**refusals(), **answered_by(list[float])},
    )
    async def similarity(body: SimilarityRequest, request: Request) -> Response:
        options, name = body.parameters or TextOptions(), "source_sentence"
        texts = _checked(body.inputs.source_sentence, name, body.inputs.sentences, "sentences")
        texts = service.prompted(texts, options.prompt_name)
        truncation, heads = truncation_of(options, service, cuts=True), frozenset({Head.DENSE})
        found = await service.encode(texts, "sentences", heads, truncation, request.scope[CALL], name)
        headers = text_headers(found.tokenized.is_cut, found.tokenized.is_respelled, name)
        return json_answer(_scores(found.vectors, {Head.DENSE: 1.0}), headers)


def _is_by_reranker(body: RerankRequest, service: Service) -> bool:
    """Whether the reranker scores, rather than the encoder's heads.

    Raises:
        FieldError: the heads are asked for, and there are none.
    """
    asked = "weights" if "weights" in body.model_fields_set else "mode" if body.mode is not None else ""
    if asked and not service.has_encoder:
        message = f"{asked} must be left out: it is for an encoder's heads, and a reranker is served alone here"
        raise FieldError(message, asked, "unsupported_value")
    return service.reranker is not None and not asked


def _head_weights(body: RerankRequest, service: Service) -> Mapping[Head, float]:
    """The heads that score, with their weights.

    Raises:
        HeadError: a head is asked for that the bundle does not have.
        InputError: all weights are 0.
    """
    own = service.manifest.heads
    if body.mode not in (None, "hybrid"):
        return dict.fromkeys(checked_heads(service.manifest, {Head(body.mode)}), 1.0)
    weighed = {head for head in body.weights.model_fields_set if getattr(body.weights, head) > 0}
    wanted = {head for head in ENCODER_HEADS if head in own or body.mode == "hybrid" or head in weighed}
    weights = {head: float(getattr(body.weights, head)) for head in checked_heads(service.manifest, wanted)}
    FusionWeights.from_sequence([weights.get(head, 0.0) for head in ENCODER_HEADS])
    return {head: weight for head, weight in weights.items() if weight}


def _check_options(body: RerankRequest, most: int) -> None:
    """Refuse what would give other scores elsewhere and cannot be done here."""
    if body.prompt_name is not None:
        message = (
            "prompt_name must be left out: query and passages would need different prompts; put them into the texts"
        )
        raise FieldError(message, "prompt_name", "unsupported_value")
    tokens = body.max_tokens_per_doc
    if tokens is not None and tokens < most:
        message = f"max_tokens_per_doc must be at least {most}, where texts are cut, or left out, got {tokens}"
        raise FieldError(f"{message}; truncate_prompt_tokens cuts query and documents alike", "max_tokens_per_doc")


def _checked(query: str, query_name: str, passages: list[str], name: str) -> Texts:
    """The query, which is text 0, and the passages, checked."""
    check_text(query, query_name)
    for i, text in enumerate(passages):
        check_text(text, f"{name}[{i}]")
    return (query, *passages)


def _scores(encoding: Encoding, weights: Mapping[Head, float]) -> list[float]:
    """Weighted mean of the heads' scores of text 0, the query, and all other texts, the P passages."""
    passages = np.arange(1, len(encoding.token_counts))
    scores = head_scores(encoding, np.zeros_like(passages), encoding, passages)
    counted = FusionWeights.from_sequence([weights.get(head, 0.0) for head in ENCODER_HEADS])
    return scores.combined(counted)["colbert+sparse+dense"]


def _results(body: RerankRequest, best: list[int], scores: list[float], passages: list[str]) -> list[Any]:
    """`TextRank`s where the request has `texts`, else `RankedDocument`s."""
    is_shown = body.return_text or body.return_documents
    if body.documents is None:
        return [{"index": i, "score": scores[i]} | ({"text": passages[i]} if is_shown else {}) for i in best]
    return [
        {"index": i, "relevance_score": min(1.0, max(0.0, scores[i]))}
        | ({"document": {"text": passages[i]}} if is_shown else {})
        for i in best
    ]


def _reranked(
    results: list[Any], scored_by: list[Head], model: str, tokens: int, headers: Mapping[str, str]
) -> Reranked:
    answer: Reranked = {
        "id": f"rerank-{uuid4().hex}",
        "model": model,
        "results": results,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "meta": {"billed_units": {"search_units": 1}, "tokens": {"input_tokens": tokens, "output_tokens": 0}},
        "scored_by": scored_by,
    }
    warnings = (
        (TRUNCATED, TRUNCATED_TEXTS, ("was", "were"), "cut to the limit of tokens"),
        (OUT_OF_VOCABULARY, OUT_OF_VOCABULARY_TEXTS, ("has", "have"), "pieces that the bundle dropped"),
    )
    for number, which, (verb_of_one, verb_of_many), what in warnings:
        if number in headers:
            subject = f"1 text {verb_of_one}" if headers[number] == "1" else f"{headers[number]} texts {verb_of_many}"
            answer["meta"].setdefault("warnings", []).append(f"{subject} {what}: {_named(headers[which])}")
    return answer


def _named(texts: str) -> str:
    """Which texts a header names, in words.

    >>> _named("query,1,3"), _named("0"), _named("query"), _named("0-2,...")
    ('query, documents 1, 3', 'document 0', 'query', 'documents 0-2, ...')
    """
    names = texts.split(",")
    passages = [name for name in names if name != "query"]
    ending = "s" if len(passages) > 1 or "-" in "".join(passages) else ""
    documents = [f"document{ending} {', '.join(passages)}"] if passages else []
    return ", ".join(["query"] * (passages != names) + documents)
