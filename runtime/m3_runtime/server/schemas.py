"""Bodies of requests and answers: OpenAI's, text-embeddings-inference's, and our own.

Requests are pydantic models, and strict: no number passes for a text. Answers are typed dicts, which the routes build
and the OpenAPI page shows; they are written without validation, for speed.
"""

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from typing_extensions import TypedDict

from m3_runtime.errors import InputError
from m3_runtime.tokenizer import check_text

_STRICT = ConfigDict(strict=True, extra="forbid")
_OPEN = ConfigDict(strict=True, extra="ignore")
"""Clients of foreign APIs send fields that came later or mean nothing here."""

TokenIds = list[int]
Texts = tuple[str | TokenIds, ...]
"""S texts, each as a str or as token ids."""


def parse_texts(value: Any, name: str) -> Texts:
    """The texts of a field: one text, a list of texts, one text's token ids, or a list of those.

    Args:
        value: what the client sent.
        name: of the field.

    Raises:
        InputError: something is neither a text nor token ids; the item is named.

    >>> parse_texts(["a", [5, 6]], "input")
    ('a', [5, 6])
    >>> parse_texts([5, 6], "input")
    ([5, 6],)
    """
    if isinstance(value, str):
        check_text(value, name)
        return (value,)
    if not isinstance(value, list):
        raise InputError(
            f"{name} must be a text, a list of texts, or token ids (one list, or a list of lists), got {_kind(value)}"
        )
    if not value:
        raise InputError(f"{name} must hold at least one text, got an empty list")
    if _is_int(value[0]):
        return (_token_ids(value, name),)
    return tuple(_item(item, f"{name}[{i}]") for i, item in enumerate(value))


def _item(item: Any, name: str) -> str | TokenIds:
    if isinstance(item, str):
        check_text(item, name)
        return item
    if isinstance(item, list):
        return _token_ids(item, name)
    raise InputError(f"{name} must be a text or a list of token ids, got {_kind(item)}")


def _token_ids(ids: list[Any], name: str) -> TokenIds:
    for i, number in enumerate(ids):
        if not _is_int(number):
            raise InputError(f"{name}[{i}] must be a token id, got {_kind(number)}")
    return ids


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    """A value's type, as JSON calls it."""
    names = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _texts_field(name: str) -> PlainValidator:
    accepted = str | list[str] | list[int] | list[list[int]]
    return PlainValidator(partial(parse_texts, name=name), json_schema_input_type=accepted)


Truncate = Annotated[
    bool | None, Field(description="Cut longer texts instead of refusing them; null is the server's own choice.")
]
Direction = Annotated[
    Literal["Right", "right", "Left", "left"] | None, Field(description="Only the right end is ever cut.")
]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class OpenAiRequest(BaseModel):
    """POST /v1/embeddings."""

    model_config = _OPEN
    model: str
    input: Annotated[Texts, _texts_field("input")]
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None
    user: str | None = None


class TeiParameters(BaseModel):
    """How long texts may be, as text-embeddings-inference asks; also the parameters of POST /similarity."""

    model_config = _OPEN
    truncate: Truncate = None
    truncation_direction: Direction = "Right"
    prompt_name: str | None = None


class EmbedSparseRequest(TeiParameters):
    """POST /embed_sparse."""

    inputs: Annotated[Texts, _texts_field("inputs")]


class EmbedRequest(EmbedSparseRequest):
    """POST /embed, /embed_all."""

    normalize: bool | None = True
    dimensions: int | None = None


class SimilarityInput(BaseModel):
    """One sentence, and those it is compared with."""

    model_config = _OPEN
    source_sentence: str
    sentences: Annotated[list[str], Field(min_length=1)]


class SimilarityRequest(BaseModel):
    """POST /similarity."""

    model_config = _OPEN
    inputs: SimilarityInput
    parameters: TeiParameters | None = None


class RerankWeights(BaseModel):
    """What each head counts in the hybrid score."""

    model_config = _STRICT
    dense: Weight = 1.0
    sparse: Weight = 1.0
    colbert: Weight = 1.0


class RerankRequest(TeiParameters):
    """POST /rerank. `mode` and `weights` are ours."""

    query: str
    texts: Annotated[list[str], Field(min_length=1)]
    raw_scores: Annotated[bool, Field(description="Scores are cosines and sums, never logits: both are the same.")] = (
        False
    )
    return_text: bool = False
    mode: Literal["dense", "sparse", "colbert", "hybrid"] = "hybrid"
    weights: RerankWeights = RerankWeights()


class TokenizeRequest(BaseModel):
    """POST /tokenize."""

    model_config = _OPEN
    inputs: Annotated[str | list[str], Field(description="One text, or several.")]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class EncodeRequest(BaseModel):
    """POST /m3/encode: all heads asked for, from one pass."""

    model_config = _STRICT
    texts: Annotated[Texts, _texts_field("texts")]
    heads: Annotated[
        list[Literal["dense", "sparse", "colbert"]], Field(min_length=1, description="Heads that are wanted.")
    ] = ["dense", "sparse", "colbert"]
    max_length: Annotated[int | None, Field(ge=3, description="Tokens per text, both special tokens included.")] = None
    truncate: Truncate = None
    format: Literal["json", "npz", "safetensors"] = "json"
    colbert_dtype: Literal["float32", "float16"] = "float32"


_NUMBERS = {"type": "array", "items": {"type": "number"}}
Vector = Annotated[Any, WithJsonSchema(_NUMBERS)]
"""A float32 array of one axis; in JSON a list of numbers. Matrices have two axes, and are lists of those."""
Matrix = Annotated[Any, WithJsonSchema({"type": "array", "items": _NUMBERS})]
Number = Annotated[Any, WithJsonSchema({"type": "number"})]
"""A float32, with the digits that it has."""


class OpenAiVector(TypedDict):
    """One text's dense vector; a string is base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: Vector | str


class OpenAiUsage(TypedDict):
    """Tokens that were encoded."""

    prompt_tokens: int
    total_tokens: int


class OpenAiVectors(TypedDict):
    """What POST /v1/embeddings gives."""

    object: Literal["list"]
    data: list[OpenAiVector]
    model: str
    usage: OpenAiUsage


class OpenAiModel(TypedDict):
    """The model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    space_id: str
    variant: str


class OpenAiModels(TypedDict):
    """What GET /v1/models gives."""

    object: Literal["list"]
    data: list[OpenAiModel]


class LexicalWeight(TypedDict):
    """A token id and its weight."""

    index: int
    value: Number


class Rank(TypedDict):
    """A passage's index in the request, and its score."""

    index: int
    score: float


class TextRank(Rank, total=False):
    """The passage itself too, if the request asks for it."""

    text: str


class TokenSpan(TypedDict):
    """A token; `text[start:stop]` are its characters."""

    id: int
    text: str
    special: bool
    start: int
    stop: int


class Encoded(TypedDict):
    """What POST /m3/encode gives as JSON; null for heads that were not asked for."""

    model: str
    space_id: str
    variant: str
    token_counts: Annotated[Any, WithJsonSchema({"type": "array", "items": {"type": "integer"}})]
    truncated: int
    dense_vecs: Matrix | None
    lexical_weights: Annotated[
        list[dict[str, Number]] | None, Field(description="Decimal token id to weight, in order of first occurrence.")
    ]
    colbert_vecs: list[Matrix] | None
