"""What is served: OpenAI's /v1/models, text-embeddings-inference's /info, /tokenize and /decode."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from m3_runtime.encoder import M3Encoder
from m3_runtime.reranker import M3Reranker
from m3_runtime.server.addresses import RERANKER_INFO
from m3_runtime.server.answers import OpenAiRefusal, answered_by, json_answer, no_such_model, refusals
from m3_runtime.server.routes.bodies import OneParseRoute
from m3_runtime.server.schemas import DecodeRequest, OpenAiModel, OpenAiModels, TokenizeRequest, TokenSpan
from m3_runtime.server.service import Service
from m3_runtime.server.tokenizing import check_known
from m3_runtime.tokenizer import check_text
from m3_runtime.version import __version__

_SHOWN_SHARE = 16
"""/tokenize takes texts of one sixteenth of the longest body: a token takes far more room in its answer."""


def openai_models(service: Service) -> APIRouter:
    """GET /v1/models (also /models)."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI"], responses=refusals(OpenAiRefusal))

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
            return no_such_model(request.url.path, model, names)
        return json_answer(_model(model if model in service.model_names else service.model_name, service.model))

    return routes


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


def tei_facts(service: Service) -> APIRouter:
    """POST /tokenize, /decode; GET /info, /reranker/info."""
    routes = APIRouter(tags=["text-embeddings-inference"], responses=refusals(), route_class=OneParseRoute)
    _add_tokens(routes, service)

    @routes.get("/info", summary="What is served, and its limits")
    async def info() -> Response:
        return json_answer(_info(service, as_reranker=not service.has_encoder))

    @routes.get(RERANKER_INFO, summary="The same, of a server that is asked for scores")
    async def reranker_info() -> Response:
        return json_answer(_info(service, as_reranker=True))

    return routes


def _add_tokens(routes: APIRouter, service: Service) -> None:
    @routes.post(
        "/tokenize", summary="Tokens with their places in the text", responses=answered_by(list[list[TokenSpan]])
    )
    async def tokenize(body: TokenizeRequest) -> Response:
        sent = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        for i, text in enumerate(sent):
            check_text(text, f"inputs[{i}]")
        texts = [text for text in service.prompted(tuple(sent), body.prompt_name) if isinstance(text, str)]
        most = service.settings.limits.max_body_bytes // _SHOWN_SHARE
        return await service.show_tokens(
            list(map(len, texts)), lambda: json_answer([tokens(text, body) for text in texts]), most
        )

    def tokens(text: str, body: TokenizeRequest) -> list[TokenSpan]:
        pieces = service.model.tokenizer.pieces(text, with_specials=body.add_special_tokens)
        return [{"id": p.id, "text": p.text, "special": p.is_special, "start": p.start, "stop": p.stop} for p in pieces]

    @routes.post("/decode", summary="Texts of token ids", responses=answered_by(list[str]))
    async def decode(body: DecodeRequest) -> Response:
        tokenizer = service.model.tokenizer
        hidden = tokenizer.special_ids if body.skip_special_tokens else frozenset()
        for i, row in enumerate(body.ids):
            check_known(row, tokenizer.vocab_size, f"ids[{i}]")
        return await service.show_tokens(
            list(map(len, body.ids)),
            lambda: json_answer([tokenizer.decode([i for i in row if i not in hidden]) for row in body.ids]),
        )


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
    if manifest.is_reranker:
        return facts
    geometry = manifest.geometry
    return facts | {
        "dimensions": geometry.hidden_size,
        "smaller_dimensions": sorted(service.dimensions.trained),
        "dimension_losses": service.dimension_losses,
        "colbert_dimensions": geometry.colbert_dim,
        "prompts": list(service.prompts),
        "default_prompt_name": service.default_prompt_name,
    }
