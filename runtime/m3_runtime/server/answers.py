"""Answers on the wire: JSON with numbers as short as their own precision allows, and errors."""

import math
from enum import StrEnum
from http import HTTPStatus
from typing import Any

import orjson
from starlette.responses import Response

from m3_runtime.errors import (
    DeadlineError,
    DrainingError,
    HeadError,
    InputError,
    M3Error,
    QueueFullError,
    RequestTooLargeError,
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


def refusal(path: str, status: int, problem: Problem, message: str, retry_after_s: float | None = None) -> Response:
    """An error, in the form that the path's clients expect: OpenAI's under /v1, else text-embeddings-inference's."""
    if path.startswith("/v1/"):
        body: object = {"error": {"message": message, "type": problem.openai_type, "param": None, "code": problem}}
    else:
        body = {"error": message, "error_type": problem}
    headers = {"x-m3-problem": problem.value}
    if retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
    if status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return Response(orjson.dumps(body), status, headers, JSON)


def refusal_of(path: str, error: M3Error) -> Response:
    """An error of ours as an answer."""
    for kind, problem, status in _PROBLEMS:
        if isinstance(error, kind):
            retry_after_s = {Problem.DRAINING: 1.0}.get(problem)
            if isinstance(error, QueueFullError):
                retry_after_s = error.retry_after_s
            return refusal(path, status, problem, str(error), retry_after_s)
    return refusal(path, HTTPStatus.INTERNAL_SERVER_ERROR, Problem.BACKEND, f"the engine failed: {error}")
