"""The routes: OpenAI's embeddings, Hugging Face's text-embeddings-inference (TEI), and ours for all heads at once."""

import asyncio
import base64
import io
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, HTTPException, Request
from fastapi.routing import APIRoute
from numpy.typing import NDArray
from pydantic_core import from_json
from starlette.responses import Response

from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.encoding import Encoding
from m3_runtime.errors import InputError
from m3_runtime.io.output import npz_arrays, write_npz
from m3_runtime.scoring import FusionWeights, PairScores, colbert_score, sparse_dot
from m3_runtime.server.admission import CALL
from m3_runtime.server.answers import (
    OpenAiRefusal,
    Problem,
    answered_by,
    colbert_answer,
    json_answer,
    refusal,
    refusals,
)
from m3_runtime.server.schemas import (
    EmbedRequest,
    EmbedSparseRequest,
    Encoded,
    EncodeRequest,
    LexicalWeight,
    Matrix,
    OpenAiModel,
    OpenAiModels,
    OpenAiRequest,
    OpenAiVectors,
    RerankRequest,
    SimilarityRequest,
    TeiParameters,
    TextRank,
    Texts,
    TokenizeRequest,
    TokenSpan,
    Vector,
)
from m3_runtime.server.service import Service
from m3_runtime.tokenizer import OnTruncate, check_text
from m3_runtime.version import __version__

_DENSE, _SPARSE, _COLBERT = (frozenset({head}) for head in Head)
_NPZ = "application/x-npz"
_SAFETENSORS = "application/x-safetensors"


class _OneParseRequest(Request):
    async def json(self) -> Any:
        """The body, parsed once, by a stricter parser than Python's.

        Raises:
            HTTPException: no JSON: not UTF-8, NaN, nested without end, half a surrogate pair.
        """
        try:
            return from_json(await self.body(), allow_inf_nan=False, cache_strings=False)
        except ValueError as error:
            raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, f"the body is not JSON: {error}") from None


class _OneParseRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_OneParseRequest(request.scope, request.receive))

        return handle


def openai_routes(service: Service) -> APIRouter:
    """POST /v1/embeddings, GET /v1/models."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI"], responses=refusals(OpenAiRefusal), route_class=_OneParseRoute)

    @routes.post("/embeddings", summary="Dense vectors, as OpenAI gives them", responses=answered_by(OpenAiVectors))
    async def embeddings(body: OpenAiRequest, request: Request) -> Response:
        if body.model not in service.names:
            return _no_such_model(request.url.path, body.model, service)
        service.check_dimensions(body.dimensions)
        found = await service.encode(body.input, "input", _DENSE, service.truncation(), request.scope[CALL])
        assert found.dense_vecs is not None
        tokens = int(found.token_counts.sum())
        is_base64 = body.encoding_format == "base64"
        answer: OpenAiVectors = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": i, "embedding": _base64(vector) if is_base64 else vector}
                for i, vector in enumerate(found.dense_vecs)
            ],
            "model": service.model_name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return json_answer(answer)

    @routes.get("/models", summary="The model that is served", responses=answered_by(OpenAiModels))
    async def models() -> Response:
        answer: OpenAiModels = {"object": "list", "data": [_model(service)]}
        return json_answer(answer)

    @routes.get("/models/{model:path}", summary="One model", responses=answered_by(OpenAiModel))
    async def model(model: str, request: Request) -> Response:
        if model not in service.names:
            return _no_such_model(request.url.path, model, service)
        return json_answer(_model(service))

    return routes


def _model(service: Service) -> OpenAiModel:
    return {
        "id": service.model_name,
        "object": "model",
        "created": 0,
        "owned_by": "m3-runtime",
        "space_id": service.manifest.space_id,
        "variant": service.encoder.variant.name,
    }


def _no_such_model(path: str, model: str, service: Service) -> Response:
    known = ", ".join(dict.fromkeys(service.names))
    return refusal(path, 404, Problem.NOT_FOUND, f"there is no model {model!r} here; this server has: {known}")


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode("ascii")


def tei_routes(service: Service) -> APIRouter:
    """POST /embed, /embed_sparse, /embed_all, /similarity, /rerank, /tokenize; GET /info."""
    routes = APIRouter(tags=["text-embeddings-inference"], responses=refusals(), route_class=_OneParseRoute)
    _add_vectors(routes, service)
    _add_scores(routes, service)
    _add_tokens(routes, service)
    return routes


def _add_vectors(routes: APIRouter, service: Service) -> None:
    async def encode(body: EmbedSparseRequest, heads: frozenset[Head], request: Request) -> Encoding:
        _check_direction(body.truncation_direction)
        if isinstance(body, EmbedRequest):
            service.check_dimensions(body.dimensions)
            if body.normalize is False and service.manifest.normalize:
                raise InputError(
                    "normalize must be true or left out: the graph gives vectors of unit length, and no others"
                )
        truncation = service.truncation(body.truncate)
        return await service.encode(body.inputs, "inputs", heads, truncation, request.scope[CALL])

    @routes.post("/embed", summary="Dense vectors", responses=answered_by(list[Vector]))
    async def embed(body: EmbedRequest, request: Request) -> Response:
        return json_answer((await encode(body, _DENSE, request)).dense_vecs)

    # where clients post that are given the server's address alone, LangChain's for one
    routes.post("/", include_in_schema=False)(embed)

    @routes.post("/embed_sparse", summary="Lexical weights", responses=answered_by(list[list[LexicalWeight]]))
    async def embed_sparse(body: EmbedSparseRequest, request: Request) -> Response:
        found = await encode(body, _SPARSE, request)
        assert found.sparse is not None
        answer: list[list[LexicalWeight]] = [
            [{"index": i, "value": w} for i, w in zip(ids.tolist(), weights, strict=True)]
            for ids, weights in found.sparse.rows()
        ]
        return json_answer(answer)

    @routes.post("/embed_all", summary="ColBERT vectors", responses=answered_by(list[Matrix]))
    async def embed_all(body: EmbedRequest, request: Request) -> Response:
        found = await encode(body, _COLBERT, request)
        return await colbert_answer(found.colbert_vecs, found, service.settings.limits.max_colbert_json_tokens)


def _add_scores(routes: APIRouter, service: Service) -> None:
    @routes.post("/similarity", summary="Cosines of one sentence and others", responses=answered_by(list[float]))
    async def similarity(body: SimilarityRequest, request: Request) -> Response:
        parameters = body.parameters or TeiParameters()
        _check_direction(parameters.truncation_direction)
        texts = _query_and_passages(body.inputs.source_sentence, "inputs.source_sentence", body.inputs.sentences)
        truncation = service.truncation(parameters.truncate)
        found = await service.encode(texts, "sentences", _DENSE, truncation, request.scope[CALL])
        return json_answer(_scores(found, "dense", FusionWeights()))

    @routes.post(
        "/rerank", summary="Passages by their score, by one head or all three", responses=answered_by(list[TextRank])
    )
    async def rerank(body: RerankRequest, request: Request) -> Response:
        _check_direction(body.truncation_direction)
        given = body.weights
        weights = FusionWeights.from_sequence([given.dense, given.sparse, given.colbert])
        heads = frozenset(Head) if body.mode == "hybrid" else frozenset({Head(body.mode)})
        texts = _query_and_passages(body.query, "query", body.texts)
        truncation = service.truncation(body.truncate)
        found = await service.encode(texts, "texts", heads, truncation, request.scope[CALL])
        scores = await asyncio.to_thread(_scores, found, body.mode, weights)
        ranks: list[TextRank] = []
        for i in sorted(range(len(scores)), key=lambda i: -scores[i]):
            ranks.append({"index": i, "score": scores[i]})
            if body.return_text:
                ranks[-1]["text"] = body.texts[i]
        return json_answer(ranks)


def _scores(
    encoding: Encoding, mode: Literal["dense", "sparse", "colbert", "hybrid"], weights: FusionWeights
) -> list[float]:
    """Scores of text 0, the query, and all other texts, the P passages."""
    dense = encoding.dense_vecs
    lexical = [] if encoding.sparse is None else list(encoding.sparse)
    colbert = [] if encoding.colbert_vecs is None else list(encoding.colbert_vecs)
    none = [0.0] * (len(encoding.token_counts) - 1)  # of heads that were not asked for
    scores = PairScores(
        dense=np.array(none if dense is None else np.einsum("ph,h->p", dense[1:], dense[0]), np.float32),
        sparse=np.array([sparse_dot(lexical[0], other) for other in lexical[1:]] or none, np.float32),
        colbert=np.array([colbert_score(colbert[0], other) for other in colbert[1:]] or none, np.float32),
    )
    return scores.combined(weights)["colbert+sparse+dense" if mode == "hybrid" else mode]


def _query_and_passages(query: str, name: str, passages: list[str]) -> Texts:
    check_text(query, name)
    for i, text in enumerate(passages):
        check_text(text, f"text {i}")
    return (query, *passages)


def _check_direction(direction: str | None) -> None:
    if direction in ("Left", "left"):
        raise InputError("truncation_direction must be Right: a text's beginning, with its first token, is always kept")


def _add_tokens(routes: APIRouter, service: Service) -> None:
    @routes.post(
        "/tokenize", summary="Tokens with their places in the text", responses=answered_by(list[list[TokenSpan]])
    )
    async def tokenize(body: TokenizeRequest) -> Response:
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        for i, text in enumerate(texts):
            check_text(text, f"inputs[{i}]")
        return await service.show_tokens(texts, lambda: json_answer([tokens(text, body) for text in texts]))

    def tokens(text: str, body: TokenizeRequest) -> list[TokenSpan]:
        pieces = service.encoder.tokenizer.pieces(text, with_specials=body.add_special_tokens)
        return [{"id": p.id, "text": p.text, "special": p.is_special, "start": p.start, "stop": p.stop} for p in pieces]

    @routes.get("/info", summary="What is served, and its limits")
    async def info() -> Response:
        return json_answer(_info(service))


def _info(service: Service) -> dict[str, Any]:
    manifest, variant, limits = service.manifest, service.encoder.variant, service.settings.limits
    return {
        "model_id": service.model_name,
        "model_sha": manifest.source.revision,
        "model_dtype": variant.precision,
        "model_type": {"embedding": {"pooling": manifest.pooling.value}},
        "max_concurrent_requests": limits.max_requests,
        "max_input_length": service.max_length,
        "max_batch_tokens": limits.queue.batch_tokens,
        "max_batch_requests": limits.queue.batch_texts,
        "max_client_batch_size": service.client_batch_texts,
        "auto_truncate": service.settings.on_truncate is OnTruncate.TRUNCATE,
        "tokenization_workers": 1,
        "version": __version__,
        "space_id": manifest.space_id,
        "variant": variant.name,
        "engine": variant.engine.value,
        "heads": [head.value for head in manifest.heads],
        "dimensions": manifest.geometry.hidden_size,
        "colbert_dimensions": manifest.geometry.colbert_dim,
        "max_queue_tokens": limits.queue.max_tokens,
    }


def m3_routes(service: Service) -> APIRouter:
    """POST /m3/encode."""
    routes = APIRouter(prefix="/m3", tags=["M3"], responses=refusals(), route_class=_OneParseRoute)
    answers = answered_by(Encoded)
    answers[200] |= {"content": {_NPZ: {}, _SAFETENSORS: {}}}

    @routes.post("/encode", summary="All heads asked for, from one pass", responses=answers)
    async def encode(body: EncodeRequest, request: Request) -> Response:
        heads = frozenset(map(Head, body.heads))
        truncation = service.truncation(body.truncate, body.max_length)
        found = await service.encode(body.texts, "texts", heads, truncation, request.scope[CALL])
        if body.format != "json":
            return await asyncio.to_thread(_binary, found, body, service)
        answer = _encoded(found, service)
        if Head.COLBERT not in heads:
            return json_answer(answer)
        return await colbert_answer(answer, found, service.settings.limits.max_colbert_json_tokens)

    return routes


def _encoded(found: Encoding, service: Service) -> Encoded:
    """Lexical weights stay float32, so that JSON has no digits beyond their precision."""
    rows = None if found.sparse is None else found.sparse.rows()
    return {
        "model": service.model_name,
        "space_id": service.manifest.space_id,
        "variant": service.encoder.variant.name,
        "token_counts": found.token_counts,
        "truncated": found.truncated,
        "dense_vecs": found.dense_vecs,
        "lexical_weights": None
        if rows is None
        else [dict(zip(map(str, ids.tolist()), weights, strict=True)) for ids, weights in rows],
        "colbert_vecs": list(found.colbert_vecs) if found.colbert_vecs is not None else None,
    }


def _binary(found: Encoding, body: EncodeRequest, service: Service) -> Response:
    """Arrays as `m3-runtime encode --format npz` writes them, without ids."""
    arrays = npz_arrays([], [found])
    del arrays["ids"]
    if "colbert_vecs" in arrays:
        arrays["colbert_vecs"] = arrays["colbert_vecs"].astype(body.colbert_dtype, copy=False)
    facts = {
        "space_id": service.manifest.space_id,
        "variant": service.encoder.variant.name,
        "truncated": str(found.truncated),
    }
    headers = {f"x-m3-{name.replace('_', '-')}": value for name, value in facts.items()}
    if body.format == "npz":
        file = io.BytesIO()
        write_npz(file, arrays)
        return Response(file.getvalue(), media_type=_NPZ, headers=headers)

    from safetensors.numpy import save

    return Response(save(arrays, metadata=facts), media_type=_SAFETENSORS, headers=headers)
