"""Our own route: POST /m3/encode, all heads asked for from one pass."""

import asyncio
import io
from dataclasses import replace
from importlib.util import find_spec

from fastapi import APIRouter, Request
from starlette.responses import Response

from m3_runtime.bundle.manifest import Head
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
    answered_by,
    refusals,
    row_json,
    text_headers,
    vectors_answer,
)
from m3_runtime.server.routes.bodies import OneParseRoute, check_unit_length, truncation_of
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
        form = _checked_form(body, heads, service)
        size = service.dimensions.checked(body.dimensions)
        check_unit_length(body, service)
        texts = service.prompted(body.texts, body.prompt_name)
        truncation = truncation_of(body, service, cuts=False, max_length=body.max_length)
        found = await service.encode(texts, "texts", heads, truncation, request.scope[CALL])
        if form is not None:
            found = await asyncio.to_thread(_formed, found, form, normalize=service.manifest.normalize)
        if Head.DENSE in heads:
            dense = service.dense_of(found, size, normalize=body.normalize)
            found = replace(found, vectors=replace(found.vectors, dense_vecs=dense))
        if body.format != "json":
            return await asyncio.to_thread(_binary, found, body, service)
        most = service.settings.limits.max_colbert_json_tokens
        return await vectors_answer(found.vectors, lambda: _encoded(found, body, service), text_headers(found), most)

    return routes


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
        return colbert_form(service.model.bundle, body.colbert_dtype, body.colbert_dim, body.colbert_pool)
    except (HeadError, InputError) as error:  # the only one of them that needs the bundle
        raise FieldError(str(error), "colbert_dim") from error


def _formed(found: EncodedTexts, form: ColbertForm, *, normalize: bool) -> EncodedTexts:
    assert isinstance(found.vectors.colbert_vecs, list)
    rows = [form.of(text, normalize=normalize) for text in found.vectors.colbert_vecs]
    return replace(found, vectors=replace(found.vectors, colbert_vecs=rows))


def _encoded(found: EncodedTexts, body: EncodeRequest, service: Service) -> Encoded:
    """Lexical weights stay float32, so that JSON has no digits beyond their precision."""
    vectors = found.vectors
    rows = None if vectors.sparse is None else vectors.sparse.rows()
    colbert = None if vectors.colbert_vecs is None else [joined_rows([text]) for text in vectors.colbert_vecs]
    is_packed = ColbertDtype(body.colbert_dtype).is_packed
    return {
        "model": service.model_name,
        "space_id": service.manifest.space_id,
        "variant": service.model.variant.name,
        "token_counts": vectors.token_counts,
        "truncated": vectors.truncated,
        "truncated_texts": list(found.cut),
        "out_of_vocabulary": vectors.out_of_vocabulary,
        "out_of_vocabulary_texts": list(found.respelled),
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
    arrays = npz_arrays([], [found.vectors], space_id)
    del arrays["ids"]
    facts = {
        "space_id": service.manifest.space_id,
        "variant": service.model.variant.name,
        "truncated": str(found.vectors.truncated),
        "out_of_vocabulary": str(found.vectors.out_of_vocabulary),
    }
    names = (SPACE_ID, VARIANT, TRUNCATED, OUT_OF_VOCABULARY)
    headers = dict(zip(names, facts.values(), strict=True)) | text_headers(found)
    if body.format == "npz":
        file = io.BytesIO()
        write_npz(file, arrays)
        return Response(file.getvalue(), media_type=_NPZ, headers=headers)

    from safetensors.numpy import save

    words = {name: str(arrays.pop(name)) for name in list(arrays) if arrays[name].dtype.kind == "U"}
    return Response(save(arrays, metadata=facts | words), media_type=_SAFETENSORS, headers=headers)
