"""The API of Hugging Face's text-embeddings-inference, with all three heads behind it."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.encoding import Encoding
from m3_runtime.errors import InputError
from m3_runtime.scoring import FusionWeights
from m3_runtime.server.answers import json_answer
from m3_runtime.server.gate import CALL
from m3_runtime.server.inputs import Texts
from m3_runtime.server.routes_openai import check_dimensions
from m3_runtime.server.scores import ScoreMode, score
from m3_runtime.server.service import Service
from m3_runtime.server.wire import Embed, EmbedSparse, Rerank, Similarity, SimilarityParameters, Tokenize
from m3_runtime.server.wire_answers import (
    LexicalRows,
    Matrices,
    Ranks,
    Scores,
    Tokens,
    Vectors,
    answered_by,
    refusals,
)
from m3_runtime.tokenizer import OnTruncate, check_text
from m3_runtime.version import __version__


def tei_routes(service: Service) -> APIRouter:
    """POST /embed, /embed_sparse, /embed_all, /similarity, /rerank, /tokenize; GET /info."""
    routes = APIRouter(tags=["text-embeddings-inference"], responses=refusals())
    _add_vectors(routes, service)
    _add_scores(routes, service)
    _add_words(routes, service)
    return routes


def _add_vectors(routes: APIRouter, service: Service) -> None:
    async def encode(body: Embed | EmbedSparse, head: Head, request: Request) -> Encoding:
        _check_direction(body.truncation_direction)
        return await service.encode(body.inputs, "inputs", (head,), service.cut(body.truncate), request.scope[CALL])

    @routes.post("/embed", summary="Dense vectors", responses=answered_by(Vectors))
    async def embed(body: Embed, request: Request) -> Response:
        _check_embed(body, service)
        return json_answer((await encode(body, Head.DENSE, request)).dense_vecs)

    # where clients go that are given the server's address alone, LangChain's for one
    routes.post("/", include_in_schema=False)(embed)

    @routes.post("/embed_sparse", summary="Lexical weights", responses=answered_by(LexicalRows))
    async def embed_sparse(body: EmbedSparse, request: Request) -> Response:
        found = await encode(body, Head.SPARSE, request)
        assert found.sparse is not None
        return json_answer(
            [
                [{"index": i, "value": w} for i, w in zip(ids.tolist(), weights, strict=True)]
                for ids, weights in found.sparse.rows()
            ]
        )

    @routes.post("/embed_all", summary="ColBERT vectors", responses=answered_by(Matrices))
    async def embed_all(body: Embed, request: Request) -> Response:
        _check_embed(body, service)
        found = await encode(body, Head.COLBERT, request)
        return await colbert_answer(service, found, found.colbert_vecs)


def _add_scores(routes: APIRouter, service: Service) -> None:
    @routes.post("/similarity", summary="Cosines of one sentence and others", responses=answered_by(Scores))
    async def similarity(body: Similarity, request: Request) -> Response:
        how = body.parameters or SimilarityParameters()
        _check_direction(how.truncation_direction)
        texts = _checked(body.inputs.source_sentence, "inputs.source_sentence", body.inputs.sentences)
        cut = service.cut(how.truncate)
        found = await service.encode(texts, "sentences", (Head.DENSE,), cut, request.scope[CALL])
        return json_answer(score(found).of(ScoreMode.DENSE, FusionWeights()))

    @routes.post("/rerank", summary="Passages by their score, by one head or all three", responses=answered_by(Ranks))
    async def rerank(body: Rerank, request: Request) -> Response:
        _check_direction(body.truncation_direction)
        mode, given = ScoreMode(body.mode), body.weights
        weights = FusionWeights.from_sequence([given.dense, given.sparse, given.colbert])
        texts = _checked(body.query, "query", body.texts)
        found = await service.encode(texts, "texts", mode.heads, service.cut(body.truncate), request.scope[CALL])
        scores = (await asyncio.to_thread(score, found)).of(mode, weights)
        best_first = sorted(range(len(scores)), key=lambda i: -scores[i])
        extra: list[dict[str, str]] = [{"text": text} if body.return_text else {} for text in body.texts]
        return json_answer([{"index": i, "score": scores[i], **extra[i]} for i in best_first])


def _add_words(routes: APIRouter, service: Service) -> None:
    @routes.post("/tokenize", summary="Tokens with their places in the text", responses=answered_by(Tokens))
    async def tokenize(body: Tokenize) -> Response:
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        for i, text in enumerate(texts):
            check_text(text, f"inputs[{i}]")
        return await service.show_tokens(texts, lambda: _tokens(texts, body.add_special_tokens, service))

    @routes.get("/info", summary="What is served, and its limits")
    async def info() -> Response:
        return json_answer(_info(service))


def _tokens(texts: list[str], with_specials: bool, service: Service) -> Response:
    return json_answer(
        [
            [
                {"id": p.id, "text": p.text, "special": p.is_special, "start": p.start, "stop": p.stop}
                for p in service.backend.tokenizer.pieces(text, with_specials=with_specials)
            ]
            for text in texts
        ]
    )


def _info(service: Service) -> dict[str, Any]:
    manifest, limits = service.backend.bundle.manifest, service.settings.limits
    return {
        "model_id": service.model_name,
        "model_sha": manifest.source.revision,
        "model_dtype": service.backend.variant.precision,
        "model_type": {"embedding": {"pooling": manifest.pooling.value}},
        "max_concurrent_requests": limits.max_requests,
        "max_input_length": service.max_length,
        "max_batch_tokens": limits.queue.batch_tokens,
        "max_batch_requests": limits.queue.batch_texts,
        "max_client_batch_size": limits.max_texts,
        "auto_truncate": service.settings.on_truncate is OnTruncate.TRUNCATE,
        "tokenization_workers": 1,
        "version": __version__,
        "space_id": manifest.space_id,
        "variant": service.backend.variant.name,
        "engine": service.backend.variant.engine.value,
        "heads": [head.value for head in manifest.heads],
        "dimensions": manifest.geometry.hidden_size,
        "colbert_dimensions": manifest.geometry.colbert_dim,
        "max_queue_tokens": limits.queue.max_tokens,
    }


async def colbert_answer(service: Service, found: Encoding, body: object) -> Response:
    """A JSON answer with ColBERT vectors, written aside: it may be of tens of megabytes.

    Raises:
        InputError: it would be larger than the server allows.
    """
    tokens, most = int(found.token_counts.sum()), service.settings.limits.max_colbert_json_tokens
    if tokens > most:
        raise InputError(
            f"ColBERT vectors of {tokens} tokens are too much for JSON, the limit is {most}; "
            'send less at a time, or ask POST /m3/encode for "format": "npz" or "safetensors"'
        )
    return await asyncio.to_thread(json_answer, body)


def _check_embed(body: Embed, service: Service) -> None:
    check_dimensions(service, body.dimensions)
    if body.normalize is False and service.backend.bundle.manifest.normalize:
        raise InputError("normalize must be true or left out: the graph gives vectors of unit length, and no others")


def _check_direction(direction: str | None) -> None:
    if direction in ("Left", "left"):
        raise InputError("truncation_direction must be Right: a text's beginning, with its first token, is always kept")


def _checked(query: str, name: str, texts: list[str]) -> Texts:
    """The query first, then the others."""
    check_text(query, name)
    for i, text in enumerate(texts):
        check_text(text, f"text {i}")
    return Texts((query, *texts), False)
