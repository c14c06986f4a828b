"""The app: routes, errors, the playground, admission before them, and what is closed with them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.resources import files

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from m3_runtime.errors import M3Error
from m3_runtime.server.admission import Admission
from m3_runtime.server.answers import Documented, Problem, Refusal, not_found, refusal, refusal_of
from m3_runtime.server.auth import ApiKeys
from m3_runtime.server.routes import m3_routes, openai_routes, tei_routes
from m3_runtime.server.service import Service
from m3_runtime.version import __version__

_DESCRIPTION = "BGE-M3's dense, sparse and ColBERT vectors from a CPU."

_OPERATION: Documented = {
    401: {"description": "No key, or a wrong one.", "model": Refusal},
    503: {"description": "The server is about to stop.", "content": {"text/plain": {}}},
}


def create_app(service: Service) -> ASGIApp:
    """The app of a service that is open; it closes the service when the server stops.

    Raises:
        InputError: the key file cannot be used.
    """
    settings = service.settings
    keys = None if settings.api_key_file is None else ApiKeys(settings.api_key_file)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await service.close()

    app = FastAPI(title="M3 on CPU", version=__version__, description=_DESCRIPTION, lifespan=lifespan)
    for routes in (openai_routes(service), tei_routes(service), m3_routes(service)):
        app.include_router(routes)
    _add_operation(app, service)
    if settings.has_ui:
        _add_playground(app)
    _add_errors(app)
    paths = ["/", "/docs", "/openapi.json", *app.openapi()["paths"]]
    return Admission(app, service, keys, [path for path in paths if "{" not in path])


def _add_operation(app: FastAPI, service: Service) -> None:
    operation = APIRouter(tags=["Operation"], default_response_class=PlainTextResponse, responses=_OPERATION)

    @operation.get("/health", summary="Whether the process lives")
    async def health() -> Response:
        return PlainTextResponse("alive")

    # some load balancers ask so
    operation.head("/health", include_in_schema=False)(health)

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


def _add_playground(app: FastAPI) -> None:
    page = files(__package__).joinpath("playground.html").read_bytes()
    # the page is whole: whatever got into it could load nothing, and send nothing to anyone but this server
    rules = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
    )
    headers = {"content-security-policy": f"{rules}; frame-ancestors 'none'", "x-content-type-options": "nosniff"}

    @app.get("/", include_in_schema=False)
    async def playground() -> Response:
        return HTMLResponse(page, headers=headers)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(Exception)
    @app.exception_handler(M3Error)
    async def failed(request: Request, error: Exception) -> Response:
        return refusal_of(request.url.path, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        message = "; ".join(_problem(item["loc"], item["msg"]) for item in error.errors())
        return refusal(request.url.path, HTTPStatus.UNPROCESSABLE_ENTITY, Problem.VALIDATION, message)

    @app.exception_handler(HTTPException)
    async def of_the_framework(request: Request, error: HTTPException) -> Response:
        if error.status_code == HTTPStatus.NOT_FOUND:
            return not_found(request.url.path)
        answer = refusal(request.url.path, error.status_code, Problem.VALIDATION, str(error.detail))
        answer.headers.update(error.headers or {})
        return answer


def _problem(place: tuple[int | str, ...], message: str) -> str:
    """`body.texts[3]: Input should be a valid string`, without what was sent."""
    own = message.removeprefix("Value error, ")
    if own != message:
        return own  # our own messages name the item themselves
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    return f"{path.removeprefix('body.')}: {own}"
