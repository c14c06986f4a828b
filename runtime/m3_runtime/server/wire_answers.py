"""Bodies of answers, for the OpenAPI page: answers are written without going through these classes, for speed."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, RootModel

from m3_runtime.server.answers import Problem

Vector = list[float]


class Refusal(BaseModel):
    """Why a request was refused."""

    error: str
    error_type: Problem


class OpenAiProblem(BaseModel):
    """Why, as OpenAI's API says it."""

    message: str
    type: str
    param: str | None
    code: Problem


class OpenAiRefusal(BaseModel):
    """Why a request was refused, under /v1."""

    error: OpenAiProblem


class OpenAiVector(BaseModel):
    """One text's dense vector; a string is base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: Vector | str


class OpenAiUsage(BaseModel):
    """Tokens that were encoded."""

    prompt_tokens: int
    total_tokens: int


class OpenAiVectors(BaseModel):
    """What POST /v1/embeddings gives."""

    object: Literal["list"]
    data: list[OpenAiVector]
    model: str
    usage: OpenAiUsage


class OpenAiModel(BaseModel):
    """The model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    space_id: str
    variant: str


class OpenAiModels(BaseModel):
    """What GET /v1/models gives."""

    object: Literal["list"]
    data: list[OpenAiModel]


class Vectors(RootModel[list[Vector]]):
    """A dense vector for each text."""


class Matrices(RootModel[list[list[Vector]]]):
    """For each text a ColBERT vector for each token but the first."""


class LexicalWeight(BaseModel):
    """A token id and its weight."""

    index: int
    value: float


class LexicalRows(RootModel[list[list[LexicalWeight]]]):
    """The lexical weights of each text."""


class Scores(RootModel[list[float]]):
    """A score for each sentence."""


class Rank(BaseModel):
    """A passage's place in the request, and its score."""

    index: int
    score: float
    text: str | None = None


class Ranks(RootModel[list[Rank]]):
    """Passages, best first."""


class Token(BaseModel):
    """A token; `text[start:stop]` are its characters."""

    id: int
    text: str
    special: bool
    start: int
    stop: int


class Tokens(RootModel[list[list[Token]]]):
    """The tokens of each text."""


class Encoded(BaseModel):
    """What POST /m3/encode gives as JSON; null for heads that were not asked for."""

    model: str
    space_id: str
    variant: str
    token_counts: list[int]
    truncated: int
    dense_vecs: list[Vector] | None
    lexical_weights: Annotated[
        list[dict[str, float]] | None, Field(description="Decimal token id to weight, in order of first occurrence.")
    ]
    colbert_vecs: list[list[Vector]] | None


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


def refusals(shape: type[BaseModel] = Refusal) -> Documented:
    """How each refusal is documented."""
    return {status: {"model": shape, "description": meaning} for status, meaning in _STATUSES.items()}


def answered_by(shape: type[BaseModel]) -> Documented:
    """How an answer is documented."""
    return {200: {"model": shape, "description": "Done."}}
