"""What every route does with a body: it is parsed once, and its options are checked against what is served."""

import json
from collections.abc import Callable, Coroutine, Iterator
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException, Request
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.responses import Response

from m3_runtime.bundle.manifest import LEAST_TOKENS
from m3_runtime.encode.options import checked_max_length
from m3_runtime.errors import FieldError, InputError
from m3_runtime.pairs import LEAST_PAIR_TOKENS
from m3_runtime.server.admission import only_value
from m3_runtime.server.schemas import LengthOptions
from m3_runtime.server.service import Service
from m3_runtime.server.tokenizing import Truncation
from m3_runtime.tokenizer import OnTruncate, check_text

_MODEL_LIMIT = -1
"""What vLLM's truncate_prompt_tokens calls as many tokens as the model takes."""


class _OneParseRequest(Request):
    async def json(self) -> Any:
        """The body, parsed once, by a stricter parser than Python's.

        Raises:
            HTTPException: no JSON: not UTF-8, NaN, nested without end, half a surrogate pair.
        """
        body = await self.body()
        try:
            return from_json(body, allow_inf_nan=False, cache_strings=False)
        except ValueError as error:
            reason = _half_pair(body) or str(error)
            raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, f"the body is not JSON: {reason}") from None


class OneParseRoute(APIRoute):
    """A route whose body is JSON, and says so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute.get_route_handler`."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if self.body_field is not None:
                _check_content_type(only_value(request.headers, "content-type") or "")
                _check_content_encoding(only_value(request.headers, "content-encoding") or "identity")
            return await handler(_OneParseRequest(request.scope, request.receive))

        return handle


def _check_content_type(kind: str) -> None:
    """Refuse what does not call itself JSON: a page of another origin could send it without being asked."""
    name = kind.partition(";")[0].strip().lower()
    if not (name.startswith("application/") and (name.endswith(("/json", "+json")))):
        message = "the body must be JSON and say so: send the header content-type: application/json (curl -H)"
        raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, f"{message}, got {name or 'none'}")


def _check_content_encoding(name: str) -> None:
    if name.strip().lower() != "identity":
        message = f"the body must be sent as it is, got the header content-encoding: {name}; do not compress it"
        raise HTTPException(HTTPStatus.UNPROCESSABLE_ENTITY, message)


def _half_pair(body: bytes) -> str:
    """Which text of a body has a lone surrogate, in words; nothing if none has."""
    if b"\\ud" not in body.lower():
        return ""
    try:
        for name, text in _named_texts(json.loads(body), ""):
            check_text(text, name or "the body")
    except InputError as error:
        return str(error)
    except (ValueError, RecursionError):
        pass
    return ""


def _named_texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _named_texts(item, f"{name}[{i}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield f"a name in {name or 'the body'}", key
            yield from _named_texts(item, f"{name}.{key}" if name else key)


def truncation_of(
    body: LengthOptions, service: Service, *, cuts: bool, max_length: int | None = None, of_pairs: bool = False
) -> Truncation:
    """How long a request's texts, or a reranker's pairs, may be; `cuts` if longer ones are where it does not say.

    Raises:
        FieldError: options that contradict each other, or cannot be granted.
    """
    if body.truncation_direction in ("Left", "left") and body.truncate is not False:
        message = "truncation_direction must be Right: a text's beginning, with its first token, is always kept"
        raise FieldError(message, "truncation_direction", "unsupported_value")
    tokens, is_cutting, name = body.truncate_prompt_tokens, body.truncate, "max_length"
    if tokens is not None:
        if is_cutting is False:
            message = "truncate is false, but truncate_prompt_tokens asks for texts to be cut; send one of them"
            raise FieldError(message, "truncate_prompt_tokens")
        is_cutting = True
        if tokens != _MODEL_LIMIT:
            if max_length not in (None, tokens):
                message = "max_length and truncate_prompt_tokens differ; send one of them"
                raise FieldError(message, "truncate_prompt_tokens")
            max_length, name = tokens, "truncate_prompt_tokens"
    if is_cutting is None and cuts:
        is_cutting = True
    on_truncate = {None: service.settings.on_truncate, True: OnTruncate.TRUNCATE, False: OnTruncate.ERROR}[is_cutting]
    most, least = (service.pair_max_length, LEAST_PAIR_TOKENS) if of_pairs else (service.max_length, LEAST_TOKENS)
    if max_length is None:
        return Truncation(most, on_truncate)
    try:
        return Truncation(checked_max_length(max_length, most, name, least), on_truncate)
    except InputError as error:
        raise FieldError(str(error), name) from error
