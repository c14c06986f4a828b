"""Answers as JSON, with numbers as short as their own precision allows, and errors in the form that clients expect."""

import asyncio
import math
from enum import StrEnum
from http import HTTPStatus
from typing import Any

import orjson
from starlette.responses import Response
from typing_extensions import TypedDict

from m3_runtime.encode.encoding import Encoding
from m3_runtime.errors import (
    DeadlineError,
    DrainingError,
    HeadError,
    InputError,
    M3Error,
    QueueFullError,
    RequestTooLargeError,
    ServiceError,
    TextTooLongError,
)

JSON = "application/json"


class Problem(StrEnum):
    """What went wrong; `error_type` in answers, and the label of a rejection."""

    VALIDATION = "Validation"
    TOO_LARGE = "TooLarge"
    OVERLOADED = "Overloaded"
    UNAUTHORIZED = "Unauthorized"
    NOT_FOUND = "NotFound"
    TIMEOUT = "Timeout"
    DRAINING = "Draining"
    BACKEND = "Backend"

    @property
    def openai_type(self) -> str:
        """What OpenAI's API calls it."""
        return {
            Problem.OVERLOADED: "rate_limit_error",
            Problem.UNAUTHORIZED: "authentication_error",
            Problem.TIMEOUT: "timeout_error",
            Problem.DRAINING: "server_error",
            Problem.BACKEND: "server_error",
        }.get(self, "invalid_request_error")


class Refusal(TypedDict):
    """Why a request was refused."""

    error: str
    error_type: Problem


class OpenAiProblem(TypedDict):
    """Why, as OpenAI's API says it."""

    message: str
    type: str
    param: str | None
    code: Problem


class OpenAiRefusal(TypedDict):
    """Why a request was refused, under /v1."""

    error: OpenAiProblem


_PROBLEMS: tuple[tuple[type[M3Error], Problem, HTTPStatus], ...] = (
    (RequestTooLargeError, Problem.TOO_LARGE, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (TextTooLongError, Problem.TOO_LARGE, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (InputError, Problem.VALIDATION, HTTPStatus.UNPROCESSABLE_ENTITY),
    (HeadError, Problem.VALIDATION, HTTPStatus.UNPROCESSABLE_ENTITY),
    (QueueFullError, Problem.OVERLOADED, HTTPStatus.TOO_MANY_REQUESTS),
    (DeadlineError, Problem.TIMEOUT, HTTPStatus.GATEWAY_TIMEOUT),
    (DrainingError, Problem.DRAINING, HTTPStatus.SERVICE_UNAVAILABLE),
)


def json_answer(body: Any) -> Response:
    """A JSON answer; float32 arrays keep their bits."""
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), media_type=JSON)


async def colbert_answer(body: Any, encoding: Encoding, most_tokens: int) -> Response:
    """A JSON answer with ColBERT vectors, written in another thread: it may be tens of megabytes.

    Raises:
        InputError: its texts have more tokens than the server allows.
    """
    tokens = int(encoding.token_counts.sum())
    if tokens > most_tokens:
        raise InputError(
            f"ColBERT vectors of {tokens} tokens are too much for JSON, the limit is {most_tokens}; "
            'send less at a time, or ask POST /m3/encode for "format": "npz" or "safetensors"'
        )
    return await asyncio.to_thread(json_answer, body)


def refusal(path: str, status: int, problem: Problem, message: str, retry_after_s: float | None = None) -> Response:
    """An error, in the form that the path's clients expect: OpenAI's under /v1, else text-embeddings-inference's."""
    body: Refusal | OpenAiRefusal = {"error": message, "error_type": problem}
    if path.startswith("/v1/"):
        body = {"error": {"message": message, "type": problem.openai_type, "param": None, "code": problem}}
    headers = {"x-m3-problem": problem.value}
    if retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
    if status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return Response(orjson.dumps(body), status, headers, JSON)


def refusal_of(path: str, error: Exception) -> Response:
    """An error as an answer. What the message of a foreign error says is not shown: it may hold a text."""
    for kind, problem, status in _PROBLEMS:
        if isinstance(error, kind):
            retry_after_s = 1 if isinstance(error, ServiceError) else None
            if isinstance(error, QueueFullError):
                retry_after_s = error.retry_after_s
            return refusal(path, status, problem, str(error), retry_after_s)
    message = f"the engine failed: {error}" if isinstance(error, M3Error) else "the server failed; its log says where"
    return refusal(path, HTTPStatus.INTERNAL_SERVER_ERROR, Problem.BACKEND, message)


def not_found(path: str) -> Response:
    """The answer where nothing is."""
    return refusal(path, HTTPStatus.NOT_FOUND, Problem.NOT_FOUND, "there is nothing at this path; see GET /docs")


_STATUSES = {
    400: "The request is not understood.",
    401: "No key, or a wrong one.",
    404: "No such model.",
    408: "The body did not arrive in time.",
    413: "Too many texts, tokens or bytes.",
    422: "Not JSON, or something is not what it must be; the item is named.",
    429: "The server is busy; Retry-After says when to ask again.",
    500: "The engine failed.",
    503: "The server is about to stop.",
    504: "The deadline has passed.",
}

Documented = dict[int | str, dict[str, Any]]
"""What FastAPI takes as `responses`."""


def refusals(shape: Any = Refusal) -> Documented:
    """How refusals are documented."""
    return {status: {"model": shape, "description": meaning} for status, meaning in _STATUSES.items()}


def answered_by(shape: Any) -> Documented:
    """How an answer is documented."""
    return {200: {"model": shape, "description": "Done."}}
