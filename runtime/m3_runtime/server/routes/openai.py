"""OpenAI's routes: POST /v1/embeddings, GET /v1/models."""

import base64

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from m3_runtime.bundle.manifest import Head
from m3_runtime.errors import FieldError
from m3_runtime.server.admission import CALL
from m3_runtime.server.answers import (
    OpenAiRefusal,
    Problem,
    answered_by,
    json_answer,
    refusal,
    refusals,
    row_json,
)
from m3_runtime.server.routes.bodies import OneParseRoute, check_unit_length, truncation_of, vectors_answer
from m3_runtime.server.schemas import OpenAiModel, OpenAiModels, OpenAiRequest, OpenAiVectors, Texts
from m3_runtime.server.service import Service

_DENSE = frozenset({Head.DENSE})


def openai_routes(service: Service) -> APIRouter:
    """POST /v1/embeddings (also /embeddings), GET /v1/models (also /models)."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI"], responses=refusals(OpenAiRefusal), route_class=OneParseRoute)

    if service.has_encoder:
        _add_embeddings(routes, service)

    @routes.get("/models", summary="The model that is served", responses=answered_by(OpenAiModels))
    async def models() -> Response:
        answer: OpenAiModels = {"object": "list", "data": [_model(name, service) for name in service.model_names]}
        return json_answer(answer)

    @routes.get("/models/{model:path}", summary="One model", responses=answered_by(OpenAiModel))
    async def model(model: str, request: Request) -> Response:
        if not service.is_served(model):
            return _no_such_model(request.url.path, model, service)
        return json_answer(_model(model if model in service.model_names else service.model_name, service))

    return routes


def _add_embeddings(routes: APIRouter, service: Service) -> None:
    @routes.post("/embeddings", summary="Dense vectors, as OpenAI gives them", responses=answered_by(OpenAiVectors))
    async def embeddings(body: OpenAiRequest, request: Request) -> Response:
        if not service.is_served(body.model):
            return _no_such_model(request.url.path, body.model, service)
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

        return await vectors_answer(found, answer, service)


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


def _model(name: str, service: Service) -> OpenAiModel:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "m3-runtime",
        "space_id": service.manifest.space_id,
        "variant": service.model.variant.name,
    }


def _no_such_model(path: str, model: str | None, service: Service) -> Response:
    message = f"there is no model {model!r} here; this server has: {', '.join(service.names)}"
    return refusal(path, 404, Problem.NOT_FOUND, message, field="model", code="model_not_found")


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode("ascii")
