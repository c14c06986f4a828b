"""OpenAI's routes: POST /v1/embeddings, GET /v1/models."""

import base64
from collections.abc import Sequence

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from m3_runtime.bundle.manifest import Head
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import FieldError
from m3_runtime.reranker import M3Reranker
from m3_runtime.server.admission import CALL
from m3_runtime.server.answers import (
    OpenAiRefusal,
    Problem,
    answered_by,
    json_answer,
    refusal,
    refusals,
    row_json,
    text_headers,
    vectors_answer,
)
from m3_runtime.server.routes.bodies import OneParseRoute, check_unit_length, truncation_of
from m3_runtime.server.schemas import OpenAiModel, OpenAiModels, OpenAiRequest, OpenAiVectors, Texts
from m3_runtime.server.service import Service

_DENSE = frozenset({Head.DENSE})


def openai_routes(service: Service) -> APIRouter:
    """POST /v1/embeddings (also /embeddings), GET /v1/models (also /models)."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI"], responses=refusals(OpenAiRefusal), route_class=OneParseRoute)

    if service.has_encoder:
        _add_embeddings(routes, service)

    @routes.get("/models", summary="The models that are served", responses=answered_by(OpenAiModels))
    async def models() -> Response:
        found = [_model(name, service.model) for name in service.model_names]
        if (beside := service.reranker_beside) is not None:
            found.append(_model(service.reranker_name, beside))
        answer: OpenAiModels = {"object": "list", "data": found}
        return json_answer(answer)

    @routes.get("/models/{model:path}", summary="One model", responses=answered_by(OpenAiModel))
    async def model(model: str, request: Request) -> Response:
        if (beside := service.reranker_beside) is not None and service.is_reranker_beside(model):
            return json_answer(_model(service.reranker_name, beside))
        if not service.is_served(model):
            names = (*service.names, *(service.reranker_names if beside else ()))
            return _no_such_model(request.url.path, model, names)
        return json_answer(_model(model if model in service.model_names else service.model_name, service.model))

    return routes


def _add_embeddings(routes: APIRouter, service: Service) -> None:
    @routes.post("/embeddings", summary="Dense vectors, as OpenAI gives them", responses=answered_by(OpenAiVectors))
    async def embeddings(body: OpenAiRequest, request: Request) -> Response:
        if not service.is_served(body.model):
            return _no_such_model(request.url.path, body.model, service.names)
        size = service.dimensions.checked(body.dimensions)
        check_unit_length(body, service)
        texts = _prompted(body, service)
        truncation = truncation_of(body, service, cuts=False)
        found = await service.encode(texts, "input", _DENSE, truncation, request.scope[CALL])
        write = _base64 if body.encoding_format == "base64" else row_json

        def answer() -> OpenAiVectors:
            tokens = int(found.vectors.token_counts.sum())
            return {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": i, "embedding": write(vector)}
                    for i, vector in enumerate(service.dense_of(found, size, normalize=body.normalize))
                ],
                "model": service.model_name,
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }

        return await vectors_answer(found.vectors, answer, text_headers(found))


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


def _model(name: str, model: M3Encoder | M3Reranker) -> OpenAiModel:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "m3-runtime",
        "capabilities": ["embed", "rerank"] if isinstance(model, M3Encoder) else ["rerank"],
        "space_id": model.space_id,
        "variant": model.variant.name,
    }


def _no_such_model(path: str, model: str | None, names: Sequence[str]) -> Response:
    message = f"there is no model {model!r} here; this server has: {', '.join(names)}"
    return refusal(path, 404, Problem.NOT_FOUND, message, field="model", code="model_not_found")


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode("ascii")
