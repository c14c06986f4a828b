"""Bodies of requests and answers: OpenAI's, text-embeddings-inference's, and our own.

Requests are pydantic models, and strict: no number passes for a text (`fields` says what passes beside). Answers are
typed dicts, which the routes build and the OpenAPI page shows; they are written without validation, for speed.
"""

from functools import partial
from typing import Annotated, Any, Literal, NotRequired, Self

from pydantic import ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator
from typing_extensions import TypedDict

from m3_runtime.bundle.manifest import Head
from m3_runtime.errors import FieldError
from m3_runtime.server.fields import Cut, Flag, TolerantRequest, Whole
from m3_runtime.tokenizer import check_text

_STRICT = ConfigDict(strict=True, extra="forbid")

TokenIds = list[int]
Texts = tuple[str | TokenIds, ...]
"""S texts, each as a str or as token ids."""


def parse_texts(value: Any, name: str) -> Texts:
    """The texts of a field: one text, a list of texts, one text's token ids, or a list of those.

    Raises:
        FieldError: something is neither a text nor token ids; the item is named.

    >>> parse_texts(["a", [5, 6]], "input")
    ('a', [5, 6])
    >>> parse_texts([5, 6], "input")
    ([5, 6],)
    """
    if isinstance(value, str):
        check_text(value, name)
        return (value,)
    items = _listed(value, name, "a text, a list of texts, or token ids (one list, or a list of lists)", "text")
    if _is_int(items[0]):
        return (_token_ids(items, name),)
    return tuple(_item(item, f"{name}[{i}]") for i, item in enumerate(items))


def _listed(value: Any, name: str, expected: str, item: str) -> list[Any]:
    """A list that is not empty."""
    if not isinstance(value, list):
        raise FieldError(f"{name} must be {expected}, got {json_kind(value)}", name, "invalid_type")
    if not value:
        raise FieldError(f"{name} must hold at least one {item}, got an empty list", name, "empty_array")
    return value


def _item(item: Any, name: str) -> str | TokenIds:
    if isinstance(item, str):
        check_text(item, name)
        return item
    if isinstance(item, list):
        return _token_ids(item, name)
    raise FieldError(f"{name} must be a text or a list of token ids, got {json_kind(item)}", name, "invalid_type")


def _token_ids(ids: list[Any], name: str) -> TokenIds:
    for i, number in enumerate(ids):
        if not _is_int(number):
            raise FieldError(f"{name}[{i}] must be a token id, got {json_kind(number)}", f"{name}[{i}]", "invalid_type")
    return ids


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def json_kind(value: Any) -> str:
    """A value's type, as JSON calls it."""
    names = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def parse_ids(value: Any) -> tuple[TokenIds, ...]:
    """The token ids of one text or several.

    Raises:
        FieldError: something is no token id; the item is named.

    >>> parse_ids([5, 6]), parse_ids([[5], []])
    (([5, 6],), ([5], []))
    """
    items = _listed(value, "ids", "a list of token ids, or a list of such lists", "token id")
    if not any(isinstance(item, list) for item in items):
        return (_token_ids(items, "ids"),)
    for i, item in enumerate(items):
        if not isinstance(item, list):
            raise FieldError(
                f"ids[{i}] must be a list of token ids, got {json_kind(item)}", f"ids[{i}]", "invalid_type"
            )
    return tuple(_token_ids(item, f"ids[{i}]") for i, item in enumerate(items))


def parse_documents(value: Any) -> list[str]:
    """The documents of a rerank request: texts, or objects with a text.

    Raises:
        FieldError: something is neither; the item is named.

    >>> parse_documents(["a", {"text": "b", "id": 7}])
    ['a', 'b']
    """
    items = _listed(value, "documents", "a list of texts", "text")
    return [_document(item, f"documents[{i}]") for i, item in enumerate(items)]


def _document(item: Any, name: str) -> str:
    text = item.get("text") if isinstance(item, dict) else item
    if not isinstance(text, str):
        got = "an object without one" if isinstance(item, dict) else json_kind(item)
        raise FieldError(
            f'{name} must be a text, or an object with a text under "text", got {got}', name, "invalid_type"
        )
    check_text(text, name)
    return text


def _texts_field(name: str) -> PlainValidator:
    accepted = str | list[str] | list[int] | list[list[int]]
    return PlainValidator(partial(parse_texts, name=name), json_schema_input_type=accepted)


Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class LengthOptions(TolerantRequest):
    """How long texts may be, as text-embeddings-inference and vLLM ask."""

    truncate: Annotated[
        Cut | None, Field(description="Cut longer texts instead of refusing them; null is the route's own choice.")
    ] = None
    truncate_prompt_tokens: Annotated[
        Whole | None, Field(description="Cut texts to so many tokens; -1 is the model's limit.")
    ] = None
    truncation_direction: Annotated[
        Literal["Right", "right", "Left", "left"] | None, Field(description="Only the right end is ever cut.")
    ] = None


class TextOptions(LengthOptions):
    """What else is done to texts first; also the parameters of POST /similarity."""

    prompt_name: Annotated[str | None, Field(description="One of the checkpoint's prompts, put before every text.")] = (
        None
    )


class DenseOptions(TextOptions):
    """What dense vectors shall be like."""

    normalize: Annotated[Flag | None, Field(description="Unit length; null is as the checkpoint was trained.")] = None
    dimensions: Annotated[Whole | None, Field(description="The model's, or fewer where vectors can be cut.")] = None


class OpenAiRequest(DenseOptions):
    """POST /v1/embeddings."""

    model: Annotated[str | None, Field(description="Null is the model that is served.")] = None
    input: Annotated[Texts, _texts_field("input")]
    encoding_format: Literal["float", "base64"] | None = "float"
    user: Any = None
    input_type: Annotated[str | None, Field(description="A prompt's name, where the checkpoint has prompts.")] = None
    task: Annotated[str | None, Field(description="The same.")] = None


class EmbedSparseRequest(TextOptions):
    """POST /embed_sparse."""

    inputs: Annotated[Texts, _texts_field("inputs")]


class EmbedRequest(DenseOptions):
    """POST /embed, /embed_all."""

    inputs: Annotated[Texts, _texts_field("inputs")]


class SimilarityInput(TolerantRequest):
    """One sentence, and those it is compared with."""

    source_sentence: str
    sentences: Annotated[list[str], Field(min_length=1)]


class SimilarityRequest(TolerantRequest):
    """POST /similarity."""

    inputs: SimilarityInput
    parameters: TextOptions | None = None


class RerankWeights(TolerantRequest):
    """What each head counts in the hybrid score."""

    model_config = _STRICT
    dense: Weight = 1.0
    sparse: Weight = 1.0
    colbert: Weight = 1.0


class RerankRequest(TextOptions):
    """POST /rerank, /v1/rerank, /v2/rerank: `documents` as in Jina's and Cohere's APIs, or `texts` as in TEI's.

    `mode` and `weights` are ours.
    """

    model: Annotated[str | None, Field(description="Any: there is one.")] = None
    query: str
    documents: Annotated[
        list[str] | None,
        PlainValidator(parse_documents, json_schema_input_type=list[str | dict[str, str]]),
        Field(description="Texts, or objects with a text each; answered as one object with results."),
    ] = None
    texts: Annotated[
        Annotated[list[str], Field(min_length=1)] | None, Field(description="Texts; answered as a list of ranks.")
    ] = None
    top_n: Annotated[Whole, Field(ge=0, description="So many of the best; 0 is all.")] = 0
    return_documents: Flag = False
    return_text: Flag = False
    raw_scores: Annotated[
        Flag, Field(description="Ranks have a reranker's scores before the sigmoid; heads' are as they are anyway.")
    ] = False
    max_tokens_per_doc: Annotated[Whole | None, Field(description="No less than the model's limit.")] = None
    mode: Annotated[
        Literal["dense", "sparse", "colbert", "hybrid"] | None,
        Field(description="Null is the reranker where one is served, else all heads of the bundle."),
    ] = None
    weights: RerankWeights = RerankWeights()

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.documents is None and self.texts is None:
            raise FieldError("documents: Field required (or texts)", "documents", "missing_required_parameter")
        if self.documents is not None and self.texts is not None:
            raise FieldError("documents and texts are both given; send one of them", "documents")
        return self


class TokenizeRequest(TolerantRequest):
    """POST /tokenize."""

    inputs: Annotated[str | list[str], Field(description="One text, or several.")]
    add_special_tokens: Flag = True
    prompt_name: str | None = None


class DecodeRequest(TolerantRequest):
    """POST /decode."""

    ids: Annotated[
        tuple[TokenIds, ...],
        PlainValidator(parse_ids, json_schema_input_type=list[int] | list[list[int]]),
        Field(description="One text's token ids, or several."),
    ]
    skip_special_tokens: Flag = True


class EncodeRequest(DenseOptions):
    """POST /m3/encode: all heads asked for, from one pass."""

    model_config = _STRICT
    texts: Annotated[Texts, _texts_field("texts")]
    heads: Annotated[
        Annotated[list[Literal["dense", "sparse", "colbert"]], Field(min_length=1)] | None,
        Field(description="Heads that are wanted; null is all that the bundle has."),
    ] = None
    max_length: Annotated[Whole | None, Field(ge=3, description="Tokens per text, both special tokens included.")] = (
        None
    )
    format: Literal["json", "npz", "safetensors"] = "json"
    colbert_dtype: Literal["float32", "float16", "int8", "int4", "binary"] = "float32"
    colbert_dim: Annotated[
        Whole | None, Field(ge=1, description="Project ColBERT rows on so many principal axes of the bundle's.")
    ] = None
    colbert_pool: Annotated[
        Whole, Field(ge=1, description="Pool so many similar ColBERT rows of a text into one, on average.")
    ] = 1


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
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    capabilities: Annotated[list[Literal["embed", "rerank"]], Field(description="What it does.")]
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


class TextRank(TypedDict):
    """A passage's index in the request, and its score; its text if the request asks for it."""

    index: int
    score: float
    text: NotRequired[str]


class RankedText(TypedDict):
    """A document's text."""

    text: str


class RankedDocument(TypedDict):
    """A document's index in the request, and how relevant it is, from 0 to 1; its text if the request asks for it."""

    index: int
    relevance_score: Annotated[float, Field(ge=0, le=1)]
    document: NotRequired[RankedText]


class RerankUnits(TypedDict):
    """One query, as Cohere's API counts it; nothing is billed here."""

    search_units: int


class RerankTokens(TypedDict):
    """Tokens of the query and all documents."""

    input_tokens: int
    output_tokens: int


class RerankMeta(TypedDict):
    """What Cohere's API says beside the results."""

    billed_units: RerankUnits
    tokens: RerankTokens
    warnings: NotRequired[Annotated[list[str], Field(description="What was cut, or has dropped pieces.")]]


class Reranked(TypedDict):
    """What rerank gives for `documents`, the best first."""

    id: str
    model: str
    results: list[RankedDocument]
    usage: OpenAiUsage
    meta: RerankMeta
    scored_by: Annotated[list[Head], Field(description="Heads whose scores count.")]


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
    truncated_texts: Annotated[list[int], Field(description="Which texts were cut.")]
    out_of_vocabulary: int
    out_of_vocabulary_texts: Annotated[
        list[int], Field(description="Which texts have a piece that the bundle dropped; their vectors are approximate.")
    ]
    dense_vecs: Matrix | None
    lexical_weights: Annotated[
        list[dict[str, Number]] | None, Field(description="Decimal token id to weight, in order of first occurrence.")
    ]
    colbert_vecs: Annotated[
        list[Matrix] | None, Field(description="Of int8, int4 and binary rows the values of PackedRows.")
    ]
    colbert_scales: Annotated[list[Vector] | None, Field(description="One a row, of int8, int4 and binary rows.")]
    colbert_dim: Annotated[int | None, Field(description="Dimensions of a row.")]
    colbert_space_id: Annotated[str | None, Field(description="The space of the rows, another one with colbert_dim.")]
