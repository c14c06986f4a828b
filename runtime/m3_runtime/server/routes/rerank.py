"""Rerank, in the two forms that clients speak: text-embeddings-inference's, and Jina's and Cohere's.

`texts` is answered by a list of ranks with scores as they are: cosines, sums of lexical weights, means of MaxSim, or
in hybrid mode their weighted mean. `documents` is answered by an object, whose relevance is the same score cut off at 0
and 1: below 0 a passage has nothing to do with the query, above 1 sums of lexical weights alone can get. So scores of
different requests can be compared, and thresholds mean the same in both forms. The order is that of the scores.

Where a reranker is served, it scores unless `mode` or `weights` ask for the encoder's heads. Its relevance, and the
score of a rank, is the sigmoid of what it gives; with `raw_scores` a rank has what it gives.
"""

from collections.abc import Mapping
from functools import partial
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
    answered_by,
    json_answer,
    refusals,
    text_headers,
)
from m3_runtime.server.routes.bodies import OneParseRoute, truncation_of
from m3_runtime.server.schemas import RankedDocument, Reranked, RerankRequest, TextRank, Texts
from m3_runtime.server.service import Service
from m3_runtime.tokenizer import check_text

DENSE_ALONE: Mapping[Head, float] = {Head.DENSE: 1.0}


def rerank_routes(service: Service) -> APIRouter:
    """POST /rerank, /v1/rerank, /v2/rerank."""
    routes = APIRouter(tags=["rerank"], route_class=OneParseRoute)

    async def rerank(body: RerankRequest, request: Request) -> Response:
        passages = body.documents if body.documents is not None else body.texts or []
        name = "texts" if body.documents is None else "documents"
        texts = query_and_passages(body.query, "query", passages, name)
        if is_by_reranker := _is_by_reranker(body, service):
            _check_wishes(body, service.pair_max_length)
            truncation = truncation_of(body, service, cuts=True, of_pairs=True)
            found = await service.rerank(body.query, passages, name, truncation, request.scope[CALL])
            scored_by = [Head.SCORE]
        else:
            weights = _head_weights(body, service)
            _check_wishes(body, service.max_length)
            truncation, heads = truncation_of(body, service, cuts=True), frozenset(weights)
            score = partial(pair_scores, weights=weights)
            found = await service.score(texts, name, heads, truncation, request.scope[CALL], score)
            scored_by = [head for head in ENCODER_HEADS if head in weights]
        scores = found.scores
        best = sorted(range(len(scores)), key=lambda i: -scores[i])[: body.top_n or None]
        if is_by_reranker and not (body.raw_scores and body.documents is None):
            scores = sigmoid(np.array(scores, np.float32)).tolist()
        told = text_headers(found.is_cut, found.is_respelled, "query")
        headers = {**told, SCORED_BY: ",".join(scored_by)}
        if body.documents is None:
            return json_answer(_ranks(body, best, scores, passages), headers)
        model = service.reranker_name if is_by_reranker else service.model_name
        results = _relevant(body, best, scores, passages)
        return json_answer(_reranked(results, scored_by, model, found.tokens, told), headers)

    answers = answered_by(list[TextRank] | Reranked)
    summary = "Passages by their score: a reranker's, or that of one head or all three"
    routes.post("/rerank", summary=summary, responses={**refusals(), **answers})(rerank)
    for version in ("v1", "v2"):
        documented = {**refusals(OpenAiRefusal), **answers}
        routes.post(f"/{version}/rerank", summary=summary, responses=documented, name=f"rerank_{version}")(rerank)
    return routes


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


def _check_wishes(body: RerankRequest, most: int) -> None:
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


def query_and_passages(query: str, query_name: str, passages: list[str], name: str) -> Texts:
    """The query, which is text 0, and the passages, checked."""
    check_text(query, query_name)
    for i, text in enumerate(passages):
        check_text(text, f"{name}[{i}]")
    return (query, *passages)


def pair_scores(encoding: Encoding, weights: Mapping[Head, float]) -> list[float]:
    """Weighted mean of the heads' scores of text 0, the query, and all other texts, the P passages."""
    passages = np.arange(1, len(encoding.token_counts))
    scores = head_scores(encoding, np.zeros_like(passages), encoding, passages)
    counted = FusionWeights.from_sequence([weights.get(head, 0.0) for head in ENCODER_HEADS])
    return scores.combined(counted)["colbert+sparse+dense"]


def _ranks(body: RerankRequest, best: list[int], scores: list[float], passages: list[str]) -> list[TextRank]:
    ranks: list[TextRank] = []
    for i in best:
        ranks.append({"index": i, "score": scores[i]})
        if body.return_text or body.return_documents:
            ranks[-1]["text"] = passages[i]
    return ranks


def _relevant(body: RerankRequest, best: list[int], scores: list[float], passages: list[str]) -> list[RankedDocument]:
    results: list[RankedDocument] = []
    for i in best:
        results.append({"index": i, "relevance_score": min(1.0, max(0.0, scores[i]))})
        if body.return_text or body.return_documents:
            results[-1]["document"] = {"text": passages[i]}
    return results


def _reranked(
    results: list[RankedDocument], scored_by: list[Head], model: str, tokens: int, told: Mapping[str, str]
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
        (TRUNCATED, TRUNCATED_TEXTS, "were cut to the limit of tokens"),
        (OUT_OF_VOCABULARY, OUT_OF_VOCABULARY_TEXTS, "have pieces that the bundle dropped"),
    )
    for number, which, what in warnings:
        if number in told:
            answer["meta"].setdefault("warnings", []).append(f"{told[number]} texts {what}: {told[which]}")
    return answer
