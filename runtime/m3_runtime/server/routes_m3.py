"""Our own API: any heads from one pass, as JSON or binary."""

import asyncio
import io
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.encoding import Encoding
from m3_runtime.io.output import npz_arrays, write_npz
from m3_runtime.server.answers import json_answer
from m3_runtime.server.gate import CALL
from m3_runtime.server.routes_tei import colbert_answer
from m3_runtime.server.service import Service
from m3_runtime.server.wire import Encode
from m3_runtime.server.wire_answers import Encoded, answered_by, refusals

_NPZ = "application/x-npz"
_SAFETENSORS = "application/x-safetensors"

_ANSWERS = answered_by(Encoded)
_ANSWERS[200] |= {"content": {_NPZ: {}, _SAFETENSORS: {}}}


def m3_routes(service: Service) -> APIRouter:
    """POST /m3/encode."""
    routes = APIRouter(prefix="/m3", tags=["M3"], responses=refusals())

    @routes.post("/encode", summary="All heads asked for, from one pass", responses=_ANSWERS)
    async def encode(body: Encode, request: Request) -> Response:
        heads = tuple(head for head in Head if head.value in body.heads)
        cut = service.cut(body.truncate, body.max_length)
        found = await service.encode(body.texts, "texts", heads, cut, request.scope[CALL])
        if body.format == "json":
            answer = _json_body(found, service)
            return await colbert_answer(service, found, answer) if Head.COLBERT in heads else json_answer(answer)
        write = _npz if body.format == "npz" else _safetensors
        return await asyncio.to_thread(write, _arrays(found, body.colbert_dtype), _notes(found, service))

    return routes


def _json_body(found: Encoding, service: Service) -> dict[str, Any]:
    return {
        "model": service.model_name,
        "space_id": service.backend.bundle.manifest.space_id,
        "variant": service.backend.variant.name,
        "token_counts": found.token_counts,
        "truncated": found.truncated,
        "dense_vecs": found.dense_vecs,
        "lexical_weights": _lexical(found),
        "colbert_vecs": found.colbert_vecs,
    }


def _lexical(found: Encoding) -> list[dict[str, np.float32]] | None:
    """Ids to weights that are still float32, so that JSON has no digits beyond their precision."""
    if found.sparse is None:
        return None
    return [dict(zip(map(str, ids.tolist()), weights, strict=True)) for ids, weights in found.sparse.rows()]


def _arrays(found: Encoding, colbert_dtype: str) -> dict[str, NDArray[Any]]:
    """As `m3-runtime encode --format npz` writes them, without ids."""
    arrays = npz_arrays([], [found])
    del arrays["ids"]
    if "colbert_vecs" in arrays:
        arrays["colbert_vecs"] = arrays["colbert_vecs"].astype(colbert_dtype, copy=False)
    return arrays


def _notes(found: Encoding, service: Service) -> dict[str, str]:
    manifest = service.backend.bundle.manifest
    return {
        "space_id": manifest.space_id,
        "variant": service.backend.variant.name,
        "truncated": str(found.truncated),
    }


def _npz(arrays: dict[str, NDArray[Any]], notes: dict[str, str]) -> Response:
    file = io.BytesIO()
    write_npz(file, arrays)
    return Response(file.getvalue(), media_type=_NPZ, headers=_headers(notes))


def _safetensors(arrays: dict[str, NDArray[Any]], notes: dict[str, str]) -> Response:
    from safetensors.numpy import save

    return Response(save(arrays, metadata=notes), media_type=_SAFETENSORS, headers=_headers(notes))


def _headers(notes: dict[str, str]) -> dict[str, str]:
    return {f"x-m3-{name.replace('_', '-')}": value for name, value in notes.items()}
