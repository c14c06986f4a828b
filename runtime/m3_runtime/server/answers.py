"""Answers as JSON, with numbers as short as their own precision allows, and errors in the form that clients expect."""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from http import HTTPStatus
from itertools import groupby
from typing import Any, Self

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.responses import Response
from typing_extensions import TypedDict

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

PROBLEM, RETRY_AFTER = "x-m3-problem", "retry-after"
TRUNCATED, TRUNCATED_TEXTS = "x-m3-truncated", "x-m3-truncated-texts"
OUT_OF_VOCABULARY, OUT_OF_VOCABULARY_TEXTS = "x-m3-out-of-vocabulary", "x-m3-out-of-vocabulary-texts"
SCORED_BY, SPACE_ID, VARIANT = "x-m3-scored-by", "x-m3-space-id", "x-m3-variant"
ANSWER_HEADERS = (
    PROBLEM, RETRY_AFTER, TRUNCATED, TRUNCATED_TEXTS, OUT_OF_VOCABULARY, OUT_OF_VOCABULARY_TEXTS, SCORED_BY, SPACE_ID,
    VARIANT,
)  # fmt: skip
"""What answers say beside their bodies; a browser shows it to pages of other origins."""

TOO_LONG = "context_length_exceeded"
TOO_MANY = "array_above_max_length"
_TOO_MUCH_IN_A_FIELD = (TOO_LONG, TOO_MANY)
"""Codes of OpenAI's API that come with 400, where text-embeddings-inference says 413."""

_MOST_CUT_SHOWN = 100
"""Runs of indexes in a header: proxies do not take headers of many kilobytes."""


class Problem(StrEnum):
    """What went wrong: `error_type` in answers, and the label of a rejection."""

    openai_code: str
    """Its code in OpenAI's API, where the error has none of its own."""
    openai_type: str
    """What OpenAI's API calls it."""

    def __new__(cls, name: str, openai_code: str = "server_error", openai_type: str = "server_error") -> Self:
        """A member."""
        member = str.__new__(cls, name)
        member._value_, member.openai_code, member.openai_type = name, openai_code, openai_type
        return member

    VALIDATION = "Validation", "invalid_request", "invalid_request_error"
    TOO_LARGE = "TooLarge", "request_too_large", "invalid_request_error"
    OVERLOADED = "Overloaded", "rate_limit_exceeded", "rate_limit_error"
    UNAUTHORIZED = "Unauthorized", "invalid_api_key", "authentication_error"
    NOT_FOUND = "NotFound", "not_found", "invalid_request_error"
    TIMEOUT = "Timeout", "timeout", "timeout_error"
    DRAINING = "Draining"
    BACKEND = "Backend"


class Refusal(TypedDict):
    """Why a request was refused."""

    error: str
    error_type: Problem


class OpenAiProblem(TypedDict):
    """Why, as OpenAI's API says it; `param` is the field, or the item in it."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAiRefusal(TypedDict):
    """Why a request was refused, under /v1 and /v2."""

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


def json_answer(body: Any, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer; float32 arrays keep their bits."""
    return Response(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), headers=headers, media_type=JSON)


def row_json(row: NDArray[Any]) -> Any:
    """A row of numbers, written already: rows one by one leave other threads their turns, a whole answer would not."""
    return orjson.Fragment(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY))


def indexes_of(flags: NDArray[np.bool_] | None) -> list[int]:
    """Which flags are set; none of None."""
    return [] if flags is None else np.flatnonzero(flags).tolist()


def text_headers(
    is_cut: NDArray[np.bool_], is_respelled: NDArray[np.bool_] | None = None, first: str = ""
) -> dict[str, str]:
    """Headers that tell how many texts were cut or have a piece that the bundle dropped, and which; none where none.

    Flags are (S,). `first` is what text 0 is called, where it is a query; then the others count from 0.

    >>> text_headers(np.array([1, 1, 1, 0, 1], np.bool_))
    {'x-m3-truncated': '4', 'x-m3-truncated-texts': '0-2,4'}
    >>> text_headers(np.array([1, 0, 1], np.bool_), first="query")
    {'x-m3-truncated': '2', 'x-m3-truncated-texts': 'query,1'}
    """
    headers: dict[str, str] = {}
    of_cut, of_respelled = (TRUNCATED, TRUNCATED_TEXTS), (OUT_OF_VOCABULARY, OUT_OF_VOCABULARY_TEXTS)
    for flags, (number, which) in ((is_cut, of_cut), (is_respelled, of_respelled)):
        if indexes := indexes_of(flags):
            headers |= {number: str(len(indexes)), which: _in_runs(indexes, first)}
    return headers


def _in_runs(indexes: Sequence[int], first: str) -> str:
    """Indexes, ascending and at least one, as a header shows them."""
    names = [first] if first and indexes[0] == 0 else []
    texts = [i - bool(first) for i in indexes[len(names) :]]
    # of a run of neighbours, index minus place is the same
    for _, run in groupby(enumerate(texts), lambda pair: pair[1] - pair[0]):
        places = [text for _, text in run]
        names.append(str(places[0]) if len(places) == 1 else f"{places[0]}-{places[-1]}")
    return ",".join(names[:_MOST_CUT_SHOWN]) + (",..." if len(names) > _MOST_CUT_SHOWN else "")


def refusal(
    path: str,
    status: int,
    problem: Problem,
    message: str,
    retry_after_s: float | None = None,
    *,
    field: str | None = None,
    code: str | None = None,
) -> Response:
    """An error, in the form that the path's clients expect: OpenAI's under /v1, else text-embeddings-inference's.

    Under /v1 what is 422 elsewhere is 400. `field` may be an item in a field; `code` is one of OpenAI's, where there is
    a closer one than the problem's.
    """
    body: Refusal | OpenAiRefusal = {"error": message, "error_type": problem}
    if path.startswith(("/v1/", "/v2/")):
        if status == HTTPStatus.UNPROCESSABLE_ENTITY or code in _TOO_MUCH_IN_A_FIELD:
            status = HTTPStatus.BAD_REQUEST
        code = code or problem.openai_code
        body = {"error": {"message": message, "type": problem.openai_type, "param": field, "code": code}}
    headers = {PROBLEM: problem.value}
    if retry_after_s is not None:
        headers[RETRY_AFTER] = str(max(1, math.ceil(retry_after_s)))
    if status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return Response(orjson.dumps(body), status, headers, JSON)


def refusal_of(path: str, error: Exception) -> Response:
    """An error as an answer. What the message of a foreign error says is not shown: it may hold a text."""
    for kind, problem, status in _PROBLEMS:
        if isinstance(error, kind):
            retry_after_s, field, code = (getattr(error, name, None) for name in ("retry_after_s", "field", "code"))
            return refusal(path, status, problem, str(error), retry_after_s, field=field, code=code)
    message = f"the engine failed: {error}" if isinstance(error, M3Error) else "the server failed; its log says where"
    return refusal(path, HTTPStatus.INTERNAL_SERVER_ERROR, Problem.BACKEND, message)


def not_found(path: str, *, has_vectors: bool) -> Response:
    """The answer where nothing is; a reranker that is served alone has no vectors."""
    vectors = "POST /v1/embeddings or /embed" if has_vectors else "none, a reranker is served alone here"
    message = f"there is nothing at this path; vectors: {vectors}, scores: POST /rerank, all: GET /docs"
    return refusal(path, HTTPStatus.NOT_FOUND, Problem.NOT_FOUND, message)


def no_such_model(path: str, model: str | None, names: Sequence[str]) -> Response:
    """The answer where a model is asked for that is not served."""
    message = f"there is no model {model!r} here; this server has: {', '.join(names)}"
    return refusal(path, HTTPStatus.NOT_FOUND, Problem.NOT_FOUND, message, field="model", code="model_not_found")


_STATUSES = {
    400: "The request is not understood; under /v1, what is 422 elsewhere.",
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
