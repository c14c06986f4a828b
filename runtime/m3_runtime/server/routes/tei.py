"""The routes of Hugging Face's text-embeddings-inference (TEI), except rerank."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from m3_runtime.bundle.manifest import ENCODER_HEADS, Head
from m3_runtime.errors import FieldError
from m3_runtime.server.addresses import RERANKER_INFO
from m3_runtime.server.admission import CALL
from m3_runtime.server.answers import (
    answered_by,
    json_answer,
    refusals,
    row_json,
    text_headers,
    vectors_answer,
)
from m3_runtime.server.routes.bodies import OneParseRoute, check_unit_length, truncation_of
from m3_runtime.server.routes.rerank import DENSE_ALONE, pair_scores, query_and_passages
from m3_runtime.server.schemas import (
    DecodeRequest,
    EmbedRequest,
    EmbedSparseRequest,
    LexicalWeight,
    Matrix,
    SimilarityRequest,
    TextWishes,
    TokenizeRequest,
    TokenSpan,
    Vector,
)
from m3_runtime.server.service import EncodedTexts, Service
from m3_runtime.tokenizer import check_text
from m3_runtime.version import __version__

_DENSE, _SPARSE, _COLBERT = (frozenset({head}) for head in ENCODER_HEADS)


def tei_routes(service: Service) -> APIRouter:
    """POST /embed, /embed_sparse, /embed_all, /similarity, where there are vectors; /tokenize, /decode; GET /info."""
    routes = APIRouter(tags=["text-embeddings-inference"], responses=refusals(), route_class=OneParseRoute)
    if service.has_encoder:
        _add_vectors(routes, service)
        _add_scores(routes, service)
    _add_tokens(routes, service)
    _add_info(routes, service)
    return routes


def _add_vectors(routes: APIRouter, service: Service) -> None:
    async def encode(body: EmbedRequest | EmbedSparseRequest, heads: frozenset[Head], request: Request) -> EncodedTexts:
        texts = service.prompted(body.inputs, body.prompt_name)
        truncation = truncation_of(body, service, cuts=True)
        return await service.encode(texts, "inputs", heads, truncation, request.scope[CALL])

    @routes.post("/embed", summary="Dense vectors", responses=answered_by(list[Vector]))
    async def embed(body: EmbedRequest, request: Request) -> Response:
        size = service.dimensions.checked(body.dimensions)
        check_unit_length(body, service)
        found = await encode(body, _DENSE, request)

        def answer() -> list[Any]:
            return [row_json(vector) for vector in service.dense_of(found, size, normalize=body.normalize)]

        return await vectors_answer(found.vectors, answer, text_headers(found))

    # where clients post that are given the server's address alone, LangChain's for one
    routes.post("/", include_in_schema=False)(embed)

    @routes.post("/embed_sparse", summary="Lexical weights", responses=answered_by(list[list[LexicalWeight]]))
    async def embed_sparse(body: EmbedSparseRequest, request: Request) -> Response:
        found = await encode(body, _SPARSE, request)
        sparse = found.vectors.sparse
        assert sparse is not None

        def answer() -> list[list[LexicalWeight]]:
            return [
                [{"index": i, "value": w} for i, w in zip(ids.tolist(), weights, strict=True)]
                for ids, weights in sparse.rows()
            ]

        return await vectors_answer(found.vectors, answer, text_headers(found))

    @routes.post("/embed_all", summary="ColBERT vectors", responses=answered_by(list[Matrix]))
    async def embed_all(body: EmbedRequest, request: Request) -> Response:
        size = service.manifest.geometry.colbert_dim
        if size is not None and body.dimensions not in (None, size):
            message = f"dimensions must be {size} or left out, got {body.dimensions}: ColBERT vectors are never cut"
            raise FieldError(message, "dimensions")
        check_unit_length(body, service)
        found = await encode(body, _COLBERT, request)
        most = service.settings.limits.max_colbert_json_tokens
        vectors = found.vectors
        return await vectors_answer(vectors, lambda: vectors.colbert_vecs, text_headers(found), most)


def _add_scores(routes: APIRouter, service: Service) -> None:
    @routes.post("/similarity", summary="Cosines of one sentence and others", responses=answered_by(list[float]))
    async def similarity(body: SimilarityRequest, request: Request) -> Response:
        wishes, name = body.parameters or TextWishes(), "source_sentence"
        texts = query_and_passages(body.inputs.source_sentence, name, body.inputs.sentences, "sentences")
        texts = service.prompted(texts, wishes.prompt_name)
        truncation = truncation_of(wishes, service, cuts=True)
        found = await service.encode(texts, "sentences", _DENSE, truncation, request.scope[CALL], name)
        return json_answer(pair_scores(found.vectors, DENSE_ALONE), text_headers(found, name))


def _add_tokens(routes: APIRouter, service: Service) -> None:
    @routes.post(
        "/tokenize", summary="Tokens with their places in the text", responses=answered_by(list[list[TokenSpan]])
    )
    async def tokenize(body: TokenizeRequest) -> Response:
        sent = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        for i, text in enumerate(sent):
            check_text(text, f"inputs[{i}]")
        texts = [text for text in service.prompted(tuple(sent), body.prompt_name) if isinstance(text, str)]
        return await service.show_tokens(texts, lambda: json_answer([tokens(text, body) for text in texts]))

    def tokens(text: str, body: TokenizeRequest) -> list[TokenSpan]:
        pieces = service.model.tokenizer.pieces(text, with_specials=body.add_special_tokens)
        return [{"id": p.id, "text": p.text, "special": p.is_special, "start": p.start, "stop": p.stop} for p in pieces]

    @routes.post("/decode", summary="Texts of token ids", responses=answered_by(list[str]))
    async def decode(body: DecodeRequest) -> Response:
        tokenizer = service.model.tokenizer
        hidden = tokenizer.special_ids if body.skip_special_tokens else frozenset()
        _check_ids(body.ids, tokenizer.vocab_size)
        return await service.show_ids(
            body.ids, lambda: json_answer([tokenizer.decode([i for i in row if i not in hidden]) for row in body.ids])
        )


def _check_ids(rows: Sequence[Sequence[int]], vocab_size: int) -> None:
    for i, row in enumerate(rows):
        for k, number in enumerate(row):
            if not 0 <= number < vocab_size:
                message = f"ids[{i}][{k}] is {number}, which is no token id: they go from 0 to {vocab_size - 1}"
                raise FieldError(message, f"ids[{i}][{k}]")


def _add_info(routes: APIRouter, service: Service) -> None:
    @routes.get("/info", summary="What is served, and its limits")
    async def info() -> Response:
        return json_answer(_info(service, as_reranker=not service.has_encoder))

    @routes.get(RERANKER_INFO, summary="The same, of a server that is asked for scores")
    async def reranker_info() -> Response:
        return json_answer(_info(service, as_reranker=True))


def _info(service: Service, *, as_reranker: bool) -> dict[str, Any]:
    """What text-embeddings-inference says, of the model that gives vectors or of the one that reranks; and more."""
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    model = service.reranker if as_reranker and service.reranker is not None else service.model
    manifest, variant, limits = model.bundle.manifest, model.variant, service.settings.limits
    name = service.reranker_name if as_reranker else service.model_name
    max_length = service.pair_max_length if as_reranker else service.max_length
    facts = {
        "model_id": name,
        "model_sha": manifest.source.revision,
        "model_dtype": variant.precision,
        "served_model_name": name,
        "model_type": {"reranker": labels} if as_reranker else {"embedding": {"pooling": manifest.pooling.value}},
        "max_concurrent_requests": limits.max_requests,
        "max_input_length": max_length,
        "max_batch_tokens": limits.queue.batch_tokens,
        "max_batch_requests": limits.queue.batch_texts,
        # so many of the longest texts fit into the queue; a query is one of its request's texts
        "max_client_batch_size": max(1, min(limits.max_texts - as_reranker, limits.queue.max_tokens // max_length)),
        "auto_truncate": True,
        "tokenization_workers": 1,
        "version": __version__,
        "sha": None,
        "docker_label": None,
        "space_id": manifest.space_id,
        "variant": variant.name,
        "engine": variant.engine.value,
        "heads": [head.value for head in manifest.heads],
        "max_queue_tokens": limits.queue.max_tokens,
        "model_names": service.reranker_names if as_reranker else service.names,
        "reranker": service.reranker_name if service.reranker is not None else None,
    }
    return facts if manifest.is_reranker else facts | _encoder_info(service)


def _encoder_info(service: Service) -> dict[str, Any]:
    geometry = service.manifest.geometry
    return {
        "dimensions": geometry.hidden_size,
        "smaller_dimensions": sorted(service.dimensions.trained),
        "dimension_losses": [asdict(loss) for loss in service.dimension_losses],
        "colbert_dimensions": geometry.colbert_dim,
        "prompts": list(service.prompts),
        "default_prompt_name": service.default_prompt_name,
    }
