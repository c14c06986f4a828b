"""Our own route: POST /m3/encode, all heads asked for from one pass."""

import asyncio
import io
from dataclasses import replace

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from m3_runtime.bundle.manifest import Head
from m3_runtime.io.output import npz_arrays, write_npz
from m3_runtime.server.admission import CALL
from m3_runtime.server.answers import (
    OUT_OF_VOCABULARY,
    SPACE_ID,
    TRUNCATED,
    VARIANT,
    answered_by,
    refusals,
    row_json,
    text_headers,
)
from m3_runtime.server.routes.bodies import OneParseRoute, check_unit_length, truncation_of, vectors_answer
from m3_runtime.server.schemas import Encoded, EncodeRequest
from m3_runtime.server.service import EncodedTexts, Service

_NPZ = "application/x-npz"
_SAFETENSORS = "application/x-safetensors"


def m3_routes(service: Service) -> APIRouter:
    """POST /m3/encode."""
    routes = APIRouter(prefix="/m3", tags=["M3"], responses=refusals(), route_class=OneParseRoute)
    answers = answered_by(Encoded)
    answers[200] |= {"content": {_NPZ: {}, _SAFETENSORS: {}}}

    @routes.post("/encode", summary="All heads asked for, from one pass", responses=answers)
    async def encode(body: EncodeRequest, request: Request) -> Response:
        heads = frozenset(map(Head, body.heads or service.manifest.heads))
        size = service.dimensions.checked(body.dimensions)
        check_unit_length(body, service)
        texts = service.prompted(body.texts, body.prompt_name)
        truncation = truncation_of(body, service, cuts=False, max_length=body.max_length)
        found = await service.encode(texts, "texts", heads, truncation, request.scope[CALL])
        if Head.DENSE in heads:
            dense = service.dense_of(found, size, normalize=body.normalize)
            found = replace(found, vectors=replace(found.vectors, dense_vecs=dense))
        if body.format != "json":
            return await asyncio.to_thread(_binary, found, body, service)
        return await vectors_answer(found, lambda: _encoded(found, service), service)

    return routes


def _encoded(found: EncodedTexts, service: Service) -> Encoded:
    """Lexical weights stay float32, so that JSON has no digits beyond their precision."""
    vectors, told = found.vectors, found.tokenized
    rows = None if vectors.sparse is None else vectors.sparse.rows()
    return {
        "model": service.model_name,
        "space_id": service.manifest.space_id,
        "variant": service.model.variant.name,
        "token_counts": vectors.token_counts,
        "truncated": told.truncated,
        "truncated_texts": np.flatnonzero(told.is_cut).tolist(),
        "out_of_vocabulary": told.out_of_vocabulary,
        "out_of_vocabulary_texts": [] if told.is_respelled is None else np.flatnonzero(told.is_respelled).tolist(),
        "dense_vecs": None if vectors.dense_vecs is None else [row_json(vector) for vector in vectors.dense_vecs],
        "lexical_weights": None
        if rows is None
        else [dict(zip(map(str, ids.tolist()), weights, strict=True)) for ids, weights in rows],
        "colbert_vecs": list(vectors.colbert_vecs) if vectors.colbert_vecs is not None else None,
    }


def _binary(found: EncodedTexts, body: EncodeRequest, service: Service) -> Response:
    """Arrays as `m3-runtime encode --format npz` writes them, without ids."""
    arrays, told = npz_arrays([], [found.vectors]), found.tokenized
    del arrays["ids"]
    if "colbert_vecs" in arrays:
        arrays["colbert_vecs"] = arrays["colbert_vecs"].astype(body.colbert_dtype, copy=False)
    facts = {
        "space_id": service.manifest.space_id,
        "variant": service.model.variant.name,
        "truncated": str(told.truncated),
        "out_of_vocabulary": str(told.out_of_vocabulary),
    }
    names = (SPACE_ID, VARIANT, TRUNCATED, OUT_OF_VOCABULARY)
    headers = dict(zip(names, facts.values(), strict=True)) | text_headers(told.is_cut, told.is_respelled)
    if body.format == "npz":
        file = io.BytesIO()
        write_npz(file, arrays)
        return Response(file.getvalue(), media_type=_NPZ, headers=headers)

    from safetensors.numpy import save

    return Response(save(arrays, metadata=facts), media_type=_SAFETENSORS, headers=headers)
