"""OpenAI's embeddings API: dense vectors."""

import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from m3_runtime.bundle.manifest import Head
from m3_runtime.errors import InputError
from m3_runtime.server.answers import Problem, json_answer, refusal
from m3_runtime.server.gate import CALL
from m3_runtime.server.service import Service
from m3_runtime.server.wire import OpenAiEmbeddings
from m3_runtime.server.wire_answers import (
    OpenAiModel,
    OpenAiModels,
    OpenAiRefusal,
    OpenAiVectors,
    answered_by,
    refusals,
)


def openai_routes(service: Service) -> APIRouter:
    """POST /v1/embeddings, GET /v1/models."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI"], responses=refusals(OpenAiRefusal))

    @routes.post("/embeddings", summary="Dense vectors, as OpenAI gives them", responses=answered_by(OpenAiVectors))
    async def embeddings(body: OpenAiEmbeddings, request: Request) -> Response:
        if body.model not in names(service):
            return _no_such_model(request.url.path, body.model, service)
        check_dimensions(service, body.dimensions)
        found = await service.encode(body.input, "input", (Head.DENSE,), service.cut(), request.scope[CALL])
        assert found.dense_vecs is not None
        tokens = int(found.token_counts.sum())
        is_base64 = body.encoding_format == "base64"
        return json_answer(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": i, "embedding": _base64(vector) if is_base64 else vector}
                    for i, vector in enumerate(found.dense_vecs)
                ],
                "model": service.model_name,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    @routes.get("/models", summary="The model that is served", responses=answered_by(OpenAiModels))
    async def models() -> Response:
        return json_answer({"object": "list", "data": [_model(service)]})

    @routes.get("/models/{model:path}", summary="One model", responses=answered_by(OpenAiModel))
    async def model(model: str, request: Request) -> Response:
        if model not in names(service):
            return _no_such_model(request.url.path, model, service)
        return json_answer(_model(service))

    return routes


def names(service: Service) -> tuple[str, ...]:
    """What clients may call the model."""
    manifest = service.backend.bundle.manifest
    return service.model_name, manifest.source.name, manifest.space_id


def check_dimensions(service: Service, dimensions: int | None) -> None:
    """Refuse shorter vectors.

    Raises:
        InputError: other than the model's own size.
    """
    size = service.backend.bundle.manifest.geometry.hidden_size
    if dimensions is not None and dimensions != size:
        raise InputError(
            f"dimensions must be {size} or left out, got {dimensions}: the model was not trained for shorter "
            "vectors, and cutting them would cost accuracy without a word"
        )


def _model(service: Service) -> dict[str, Any]:
    manifest = service.backend.bundle.manifest
    return {
        "id": service.model_name,
        "object": "model",
        "created": 0,
        "owned_by": "m3-runtime",
        "space_id": manifest.space_id,
        "variant": service.backend.variant.name,
    }


def _no_such_model(path: str, model: str, service: Service) -> Response:
    known = ", ".join(dict.fromkeys(names(service)))
    return refusal(path, 404, Problem.NOT_FOUND, f"there is no model {model!r} here; this server has: {known}")


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode("ascii")
