"""The app: routes, errors, the playground, admission and tracing before them, and what is closed with them."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from m3_runtime.errors import FieldError, InputError, M3Error
from m3_runtime.server.addresses import Addresses
from m3_runtime.server.admission import Admission
from m3_runtime.server.answers import ANSWER_HEADERS, Documented, Problem, Refusal, not_found, refusal, refusal_of
from m3_runtime.server.auth import ApiKeys
from m3_runtime.server.routes.facts import openai_models, tei_facts
from m3_runtime.server.routes.scores import score_routes
from m3_runtime.server.routes.vectors import vector_routes
from m3_runtime.server.schemas import json_kind
from m3_runtime.server.service import Service
from m3_runtime.server.settings import ServerSettings
from m3_runtime.server.tracing import REQUEST_ID, TIMING_HEADERS, TRACEPARENT, RequestTracing, open_tracer
from m3_runtime.version import __version__

_DESCRIPTION = "BGE-M3's dense, sparse and ColBERT vectors from a CPU."

_OPERATION: Documented = {
    401: {"description": "No key, or a wrong one.", "model": Refusal},
    503: {"description": "The server is about to stop.", "content": {"text/plain": {}}},
}


def create_app(service: Service) -> ASGIApp:
    """The app of a service that is open; it closes the service when the server stops.

    Raises:
        InputError: the key file or the root path cannot be used.
        ExtraNotInstalledError: traces are asked for and OpenTelemetry is not installed.
    """
    settings = service.settings
    is_open = settings.api_key_file is None and settings.api_key is None
    keys = None if is_open else ApiKeys(settings.api_key_file, settings.api_key)
    tracer, send_last_spans = open_tracer(settings.otlp_endpoint)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()
        await asyncio.to_thread(send_last_spans)

    app = FastAPI(title="M3 on CPU", version=__version__, description=_DESCRIPTION, lifespan=lifespan)
    app.router.redirect_slashes = False  # paths are canonical by then
    if service.has_encoder:
        app.include_router(vector_routes(service))
    for routes in (openai_models, score_routes, tei_facts):
        app.include_router(routes(service))
    _add_operation(app, service)
    if _has_playground(service):
        _add_playground(app, settings.root_path)
    _add_errors(app, service)
    paths = ["/", "/docs", "/openapi.json", *app.openapi()["paths"]]
    addresses = Addresses([path for path in paths if "{" not in path], settings.root_path)
    admission = Admission(app, service, keys)
    return RequestTracing(_with_cors(admission, settings), tracer, addresses)


def _has_playground(service: Service) -> bool:
    return service.settings.has_ui and service.has_encoder


def _with_cors(app: ASGIApp, settings: ServerSettings) -> ASGIApp:
    """Before admission: a browser asks whether it may ask, and shows no key then."""
    if not settings.cors_allow_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=settings.cors_allow_origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=("*",),
        expose_headers=(REQUEST_ID, TRACEPARENT, *TIMING_HEADERS, *ANSWER_HEADERS),
    )


def _add_operation(app: FastAPI, service: Service) -> None:
    operation = APIRouter(tags=["Operation"], default_response_class=PlainTextResponse, responses=_OPERATION)

    @operation.get("/health", summary="Whether the process lives")
    async def health() -> Response:
        return PlainTextResponse("alive")

    # some load balancers ask so
    operation.head("/health", include_in_schema=False)(health)
    if not _has_playground(service):  # others ask so, as of text-embeddings-inference
        operation.get("/", include_in_schema=False)(health)
        operation.head("/", include_in_schema=False)(health)

    @operation.get("/ready", summary="Whether it takes requests")
    async def ready() -> Response:
        if service.is_draining:
            return PlainTextResponse("about to stop", HTTPStatus.SERVICE_UNAVAILABLE)
        return PlainTextResponse("ready")

    operation.head("/ready", include_in_schema=False)(ready)

    @operation.get("/metrics", summary="Counts for Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.page(), headers={"content-type": CONTENT_TYPE_LATEST})

    app.include_router(operation)


def _add_playground(app: FastAPI, root_path: str) -> None:
    page = files(__package__).joinpath("playground.html").read_text(encoding="utf-8")
    if root_path:  # a browser may have left out the prefix's last slash
        page = page.replace("<head>", f'<head><base href="{root_path}/">', 1)
    # the page is whole: whatever got into it could load nothing, and send nothing to anyone but this server
    rules = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
    )
    headers = {"content-security-policy": f"{rules}; frame-ancestors 'none'", "x-content-type-options": "nosniff"}

    @app.get("/", include_in_schema=False)
    async def playground() -> Response:
        return HTMLResponse(page, headers=headers)

    app.head("/", include_in_schema=False)(playground)


def _add_errors(app: FastAPI, service: Service) -> None:
    @app.exception_handler(Exception)
    @app.exception_handler(M3Error)
    async def failed(request: Request, error: Exception) -> Response:
        return refusal_of(request.url.path, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        found = [_problem(item) for item in error.errors()]
        message, first = "; ".join(message for message, _, _ in found), found[0]
        status = HTTPStatus.UNPROCESSABLE_ENTITY
        return refusal(request.url.path, status, Problem.VALIDATION, message, field=first[1], code=first[2])

    @app.exception_handler(HTTPException)
    async def of_the_framework(request: Request, error: HTTPException) -> Response:
        if error.status_code == HTTPStatus.NOT_FOUND:
            return not_found(request.url.path, has_vectors=service.has_encoder)
        answer = refusal(request.url.path, error.status_code, Problem.VALIDATION, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer


def _problem(item: Mapping[str, Any]) -> tuple[str, str | None, str]:
    """`body.texts[3]: Input should be a valid string`, without what was sent; the field; and OpenAI's code for it."""
    error = item.get("ctx", {}).get("error")
    if isinstance(error, FieldError):  # our own messages name the item themselves
        return str(error), error.field, error.code
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]).lstrip(".")
    field = path.removeprefix("body.")
    if isinstance(error, InputError):
        return str(error), field, "invalid_value"
    code = "missing_required_parameter" if item["type"] == "missing" else "invalid_value"
    said = item["msg"]
    if item["type"] == "model_attributes_type":  # pydantic's words are about Python's objects
        said = f"expected an object with named fields, got {json_kind(item['input'])}"
    return f"{field}: {said}", field, "invalid_type" if item["type"].endswith("_type") else code
