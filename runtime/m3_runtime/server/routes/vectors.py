"""Vectors: OpenAI's POST /v1/embeddings, text-embeddings-inference's /embed routes, and our own /m3/encode."""

import asyncio
import base64
import io
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from m3_runtime.bundle.manifest import ENCODER_HEADS, Head
from m3_runtime.bundle.space import colbert_space_of
from m3_runtime.encode.colbert import ColbertDtype, ColbertForm, joined_rows
from m3_runtime.encode.options import colbert_form
from m3_runtime.errors import FieldError, HeadError, InputError
from m3_runtime.io.output import npz_arrays, write_npz
from m3_runtime.server.admission import CALL
from m3_runtime.server.answers import (
    OUT_OF_VOCABULARY,
    SPACE_ID,
    TRUNCATED,
    VARIANT,
    OpenAiRefusal,
    answered_by,
    indexes_of,
    json_answer,
    no_such_model,
    refusals,
    row_json,
    text_headers,
)
from m3_runtime.server.routes.bodies import OneParseRoute, truncation_of
from m3_runtime.server.schemas import (
    DenseOptions,
    EmbedRequest,
    EmbedSparseRequest,
    Encoded,
    EncodeRequest,
    LexicalWeight,
    Matrix,
    OpenAiRequest,
    OpenAiVectors,
    TextOptions,
    Texts,
    Vector,
)
from m3_runtime.server.service import EncodedTexts, Service

_DENSE, _SPARSE, _COLBERT = (frozenset({head}) for head in ENCODER_HEADS)
_NPZ, _SAFETENSORS = "application/x-npz", "application/x-safetensors"
_FEW_BYTES = 2**18
"""So many bytes of vectors are written as JSON within some milliseconds."""


def vector_routes(service: Service) -> APIRouter:
    """All of them."""
    routes = APIRouter(route_class=OneParseRoute)
    _add_openai(routes, service)
    _add_tei(routes, service)
    _add_own(routes, service)
    return routes


def _add_openai(routes: APIRouter, service: Service) -> None:
    @routes.post(
        "/v1/embeddings",
        summary="Dense vectors, as OpenAI gives them",
        tags=["OpenAI"],
        responses={**refusals(OpenAiRefusal), **answered_by(OpenAiVectors)},
    )
    async def embeddings(body: OpenAiRequest, request: Request) -> Response:
        if not service.is_served(body.model):
            return no_such_model(request.url.path, body.model, service.names)
        size = _size(body, service)
        found = await _encode(body, _prompted(body, service), "input", _DENSE, service, request)
        write = _base64 if body.encoding_format == "base64" else row_json

        def answer() -> OpenAiVectors:
            tokens = int(found.vectors.token_counts.sum())
            return {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": i, "embedding": write(vector)}
                    for i, vector in enumerate(service.dense_of(found.vectors, size, normalize=body.normalize))
                ],
                "model": service.model_name,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }

        return await _answer(found, answer, service)


def _add_tei(routes: APIRouter, service: Service) -> None:
    def shown(answer: Any) -> dict[str, Any]:
        return {"tags": ["text-embeddings-inference"], "responses": {**refusals(), **answered_by(answer)}}

    async def encode(body: EmbedRequest | EmbedSparseRequest, heads: frozenset[Head], request: Request) -> EncodedTexts:
        texts = service.prompted(body.inputs, body.prompt_name)
        return await _encode(body, texts, "inputs", heads, service, request, cuts=True)

    @routes.post("/embed", summary="Dense vectors", **shown(list[Vector]))
    async def embed(body: EmbedRequest, request: Request) -> Response:
        size = _size(body, service)
        found = await encode(body, _DENSE, request)

        def answer() -> list[Any]:
            return [row_json(row) for row in service.dense_of(found.vectors, size, normalize=body.normalize)]

        return await _answer(found, answer, service)

    # where clients post that are given the server's address alone, LangChain's for one
    routes.post("/", include_in_schema=False)(embed)

    @routes.post("/embed_sparse", summary="Lexical weights", **shown(list[list[LexicalWeight]]))
    async def embed_sparse(body: EmbedSparseRequest, request: Request) -> Response:
        found = await encode(body, _SPARSE, request)
        sparse = found.vectors.sparse
        assert sparse is not None

        def answer() -> list[list[LexicalWeight]]:
            return [
                [{"index": i, "value": w} for i, w in zip(ids.tolist(), weights, strict=True)]
                for ids, weights in sparse.rows()
            ]

        return await _answer(found, answer, service)

    @routes.post("/embed_all", summary="ColBERT vectors", **shown(list[Matrix]))
    async def embed_all(body: EmbedRequest, request: Request) -> Response:
        size = service.manifest.geometry.colbert_dim
        if size is not None and body.dimensions not in (None, size):
            message = f"dimensions must be {size} or left out, got {body.dimensions}: ColBERT vectors are never cut"
            raise FieldError(message, "dimensions")
        _check_unit_length(body, service)
        found = await encode(body, _COLBERT, request)
        return await _answer(found, lambda: found.vectors.colbert_vecs, service)


def _add_own(routes: APIRouter, service: Service) -> None:
    answers = answered_by(Encoded)
    answers[200] |= {"content": {_NPZ: {}, _SAFETENSORS: {}}}

    @routes.post(
        "/m3/encode",
        summary="All heads asked for, from one pass",
        tags=["M3"],
        responses={**refusals(), **answers},
    )
    async def encode(body: EncodeRequest, request: Request) -> Response:
        heads = frozenset(map(Head, body.heads or service.manifest.heads))
        form, size = _checked_form(body, heads, service), _size(body, service)
        texts = service.prompted(body.texts, body.prompt_name)
        found = await _encode(body, texts, "texts", heads, service, request)
        if form is not None:
            found = await asyncio.to_thread(_formed, found, form, normalize=service.manifest.normalize)
        if Head.DENSE in heads:
            dense = service.dense_of(found.vectors, size, normalize=body.normalize)
            found = replace(found, vectors=replace(found.vectors, dense_vecs=dense))
        if body.format != "json":
            return await asyncio.to_thread(_binary, found, body, service)
        return await _answer(found, lambda: _encoded(found, body, service), service)


async def _encode(
    body: TextOptions,
    texts: Texts,
    name: str,
    heads: frozenset[Head],
    service: Service,
    request: Request,
    *,
    cuts: bool = False,
) -> EncodedTexts:
    max_length = body.max_length if isinstance(body, EncodeRequest) else None
    truncation = truncation_of(body, service, cuts=cuts, max_length=max_length)
    return await service.encode(texts, name, heads, truncation, request.scope[CALL])


def _size(body: DenseOptions, service: Service) -> int:
    """How many dimensions a request gets."""
    size = service.dimensions.checked(body.dimensions)
    _check_unit_length(body, service)
    return size


def _check_unit_length(body: DenseOptions, service: Service) -> None:
    """Refuse vectors of another length than one, where the graph gives no others."""
    if body.normalize is False and service.manifest.normalize:
        message = "normalize must be true or left out: the graph gives vectors of unit length, and no others"
        raise FieldError(message, "normalize", "unsupported_value")


def _prompted(body: OpenAiRequest, service: Service) -> Texts:
    """The texts after the prompt that is asked for: by its name, or by what other APIs call a text's kind.

    Where the checkpoint has no prompts, queries and passages are encoded alike, whatever kind they are.
    """
    kinds = {"prompt_name": body.prompt_name, "input_type": body.input_type, "task": body.task}
    if not any(service.prompts.values()):
        kinds = {"prompt_name": body.prompt_name}
    wanted = {name: kind for name, kind in kinds.items() if kind is not None}
    if len(set(wanted.values())) > 1:
        raise FieldError(f"{' and '.join(wanted)} ask for different prompts; send prompt_name alone", "prompt_name")
    name, kind = next(iter(wanted.items()), ("prompt_name", None))
    return service.prompted(body.input, kind, name)


async def _answer(found: EncodedTexts, make: Callable[[], Any], service: Service) -> Response:
    """The JSON answer that `make` gives. A long one is made and written in another thread: no query waits for it.

    Raises:
        InputError: its ColBERT vectors have more tokens than the server allows: they may be tens of megabytes.
    """
    vectors, headers = found.vectors, text_headers(found.tokenized.is_cut, found.tokenized.is_respelled)
    tokens, most = int(vectors.token_counts.sum()), service.settings.limits.max_colbert_json_tokens
    if vectors.colbert_vecs is not None and tokens > most:
        raise InputError(
            f"ColBERT vectors of {tokens} tokens are too much for JSON, the limit is {most}; "
            'send less at a time, or ask POST /m3/encode for "format": "npz" or "safetensors"'
        )
    if vectors.nbytes <= _FEW_BYTES:
        return json_answer(make(), headers)
    return await asyncio.to_thread(lambda: json_answer(make(), headers))


def _checked_form(body: EncodeRequest, heads: frozenset[Head], service: Service) -> ColbertForm | None:
    """How a request wants ColBERT rows; None where it does not say.

    Raises:
        FieldError: it says what is of a head that it does not ask for, or the bundle or server cannot make rows so.
    """
    given = [name for name in ("colbert_dtype", "colbert_dim", "colbert_pool") if name in body.model_fields_set]
    if given and Head.COLBERT not in heads:
        raise FieldError(f'{given[0]} is of ColBERT vectors, which are not asked for; add "colbert" to heads', given[0])
    if body.dimensions is not None and Head.DENSE not in heads:
        message = 'dimensions is of dense vectors, which are not asked for; add "dense" to heads'
        raise FieldError(message, "dimensions")
    if not given:
        return None
    if body.colbert_pool > 1 and find_spec("scipy") is None:
        message = "colbert_pool must be 1 or left out: this server has no scipy, which comes with the extra bulk"
        raise FieldError(message, "colbert_pool", "unsupported_value")
    try:
        return colbert_form(service.model.bundle, heads, body.colbert_dtype, body.colbert_dim, body.colbert_pool)
    except (HeadError, InputError) as error:  # the only one of them that needs the bundle
        raise FieldError(str(error), "colbert_dim") from error


def _formed(found: EncodedTexts, form: ColbertForm, *, normalize: bool) -> EncodedTexts:
    assert isinstance(found.vectors.colbert_vecs, list)
    rows = [form.of(text, normalize=normalize) for text in found.vectors.colbert_vecs]
    return replace(found, vectors=replace(found.vectors, colbert_vecs=rows))


def _encoded(found: EncodedTexts, body: EncodeRequest, service: Service) -> Encoded:
    """Lexical weights stay float32, so that JSON has no digits beyond their precision."""
    vectors, tokenized = found.vectors, found.tokenized
    rows = None if vectors.sparse is None else vectors.sparse.rows()
    colbert = None if vectors.colbert_vecs is None else [joined_rows([text]) for text in vectors.colbert_vecs]
    is_packed = ColbertDtype(body.colbert_dtype).is_packed
    return {
        "model": service.model_name,
        "space_id": service.manifest.space_id,
        "variant": service.model.variant.name,
        "token_counts": vectors.token_counts,
        "truncated": tokenized.truncated,
        "truncated_texts": indexes_of(tokenized.is_cut),
        "out_of_vocabulary": tokenized.out_of_vocabulary,
        "out_of_vocabulary_texts": indexes_of(tokenized.is_respelled),
        "dense_vecs": None if vectors.dense_vecs is None else [row_json(vector) for vector in vectors.dense_vecs],
        "lexical_weights": None
        if rows is None
        else [dict(zip(map(str, ids.tolist()), weights, strict=True)) for ids, weights in rows],
        "colbert_vecs": None if colbert is None else [values for values, _ in colbert],
        "colbert_scales": [scales for _, scales in colbert] if colbert is not None and is_packed else None,
        "colbert_dim": None if colbert is None else body.colbert_dim or service.manifest.geometry.colbert_dim,
        "colbert_space_id": None if colbert is None else colbert_space_of(service.model.bundle, body.colbert_dim),
    }


def _binary(found: EncodedTexts, body: EncodeRequest, service: Service) -> Response:
    """Arrays as `m3-runtime encode --format npz` writes them, without ids; safetensors has words as metadata."""
    space_id = "" if body.colbert_dim is None else colbert_space_of(service.model.bundle, body.colbert_dim)
    arrays, tokenized = npz_arrays([], [found.vectors], space_id), found.tokenized
    del arrays["ids"]
    facts = {
        "space_id": service.manifest.space_id,
        "variant": service.model.variant.name,
        "truncated": str(tokenized.truncated),
        "out_of_vocabulary": str(tokenized.out_of_vocabulary),
    }
    names = (SPACE_ID, VARIANT, TRUNCATED, OUT_OF_VOCABULARY)
    headers = dict(zip(names, facts.values(), strict=True)) | text_headers(tokenized.is_cut, tokenized.is_respelled)
    if body.format == "npz":
        file = io.BytesIO()
        write_npz(file, arrays)
        return Response(file.getvalue(), media_type=_NPZ, headers=headers)

    from safetensors.numpy import save

    words = {name: str(arrays.pop(name)) for name in list(arrays) if arrays[name].dtype.kind == "U"}
    return Response(save(arrays, metadata=facts | words), media_type=_SAFETENSORS, headers=headers)


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode("ascii")
