"""Bodies of requests: OpenAI's, text-embeddings-inference's, and our own. Strict: no number passes for a text."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from m3_runtime.server.inputs import InputField, InputsField, TextsField

_STRICT = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)
_OPEN = ConfigDict(strict=True, extra="ignore", arbitrary_types_allowed=True)
"""Clients of foreign APIs send fields that came later or mean nothing here."""

Truncate = Annotated[
    bool | None, Field(description="Cut longer texts instead of refusing them; null is the server's own choice.")
]
Direction = Annotated[
    Literal["Right", "right", "Left", "left"] | None, Field(description="Only the right end is ever cut.")
]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class OpenAiEmbeddings(BaseModel):
    """POST /v1/embeddings."""

    model_config = _OPEN
    model: str
    input: InputField
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = None
    user: str | None = None


class Embed(BaseModel):
    """POST /embed, /embed_all."""

    model_config = _OPEN
    inputs: InputsField
    truncate: Truncate = None
    truncation_direction: Direction = "Right"
    normalize: bool | None = True
    prompt_name: str | None = None
    dimensions: int | None = None


class EmbedSparse(BaseModel):
    """POST /embed_sparse."""

    model_config = _OPEN
    inputs: InputsField
    truncate: Truncate = None
    truncation_direction: Direction = "Right"
    prompt_name: str | None = None


class SimilarityInput(BaseModel):
    """One sentence, and those it is compared with."""

    model_config = _OPEN
    source_sentence: str
    sentences: Annotated[list[str], Field(min_length=1)]


class SimilarityParameters(BaseModel):
    """How to compare."""

    model_config = _OPEN
    truncate: Truncate = None
    truncation_direction: Direction = "Right"
    prompt_name: str | None = None


class Similarity(BaseModel):
    """POST /similarity."""

    model_config = _OPEN
    inputs: SimilarityInput
    parameters: SimilarityParameters | None = None


class Weights(BaseModel):
    """What each head counts in the hybrid score."""

    model_config = _STRICT
    dense: Weight = 1.0
    sparse: Weight = 1.0
    colbert: Weight = 1.0


class Rerank(BaseModel):
    """POST /rerank. `mode` and `weights` are ours."""

    model_config = _OPEN
    query: str
    texts: Annotated[list[str], Field(min_length=1)]
    truncate: Truncate = None
    truncation_direction: Direction = "Right"
    raw_scores: Annotated[bool, Field(description="Scores are cosines and sums, never logits: both are the same.")] = (
        False
    )
    return_text: bool = False
    mode: Literal["dense", "sparse", "colbert", "hybrid"] = "hybrid"
    weights: Weights = Weights()


class Tokenize(BaseModel):
    """POST /tokenize."""

    model_config = _OPEN
    inputs: Annotated[str | list[str], Field(description="One text, or several.")]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class Encode(BaseModel):
    """POST /m3/encode: all heads asked for, from one pass."""

    model_config = _STRICT
    texts: TextsField
    heads: Annotated[
        list[Literal["dense", "sparse", "colbert"]], Field(min_length=1, description="Heads that are wanted.")
    ] = ["dense", "sparse", "colbert"]
    max_length: Annotated[int | None, Field(ge=3, description="Tokens per text, both special tokens included.")] = None
    truncate: Truncate = None
    format: Literal["json", "npz", "safetensors"] = "json"
    colbert_dtype: Literal["float32", "float16"] = "float32"
