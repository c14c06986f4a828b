"""What a request's fields may hold beside what their types say: as other languages write it, as other APIs call it.

Where the meaning is clear, it is taken: 384.0 and "384" are numbers, "true" is a boolean, null is as good as nothing.
Where a field of another API would change the answer and means nothing here, the request is refused, so that nobody
takes one thing for another. All other unknown fields are ignored.
"""

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from m3_runtime.errors import FieldError

OPEN = ConfigDict(strict=True, extra="ignore")
"""Clients of foreign APIs send fields that came later or mean nothing here."""

_FLAGS = {"true": True, "false": False}
_WHOLE = re.compile(r"[+-]?\d{1,15}(\.0*)?", re.ASCII)
_CUTS = {**_FLAGS, "end": True, "none": False}
"""Cohere and NVIDIA say where to cut: at the end, or nowhere."""

_ALIASES = {"truncation": "truncate", "output_dimension": "dimensions", "top_k": "top_n"}
"""What other APIs (Voyage's, Cohere's) call a field of ours."""

_FOREIGN: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "add_special_tokens": ((True,), "every text is wrapped in its special tokens"),
    "embedding_type": (("float",), "encoding_format says how vectors are written"),
    "embedding_types": ((["float"],), "vectors are floats; encoding_format says how they are written"),
    "encoding_format": (("float",), "vectors are numbers; POST /v1/embeddings gives base64 too"),
    "instruction": (("",), "put it into the query itself"),
    "late_chunking": ((False,), "every text is encoded alone"),
    "modality": (("text",), "the model reads texts"),
    "output_dtype": (("float", "float32"), "vectors are floats; encoding_format says how they are written"),
    "rank_fields": ((["text"], []), "send each document as one text"),
    "return_colbert": ((False,), "POST /embed_all gives ColBERT vectors, POST /m3/encode all three heads"),
    "return_dense": ((True,), "POST /embed_sparse gives lexical weights, POST /m3/encode all three heads"),
    "return_sparse": ((False,), "POST /embed_sparse gives lexical weights, POST /m3/encode all three heads"),
}
"""Fields of other APIs that would change the answer: the values that would not, and what to do instead."""


def _as(table: Mapping[str, bool], value: Any) -> Any:
    return table.get(value.lower(), value) if isinstance(value, str) else value


def _whole(value: Any) -> Any:
    """An integer, where a float or a text is one and nothing else.

    >>> [_whole(value) for value in (384, 384.0, "384", "384.0", 0.5, "many", True)]
    [384, 384, 384, 384, 0.5, 'many', True]
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        return int(value.strip().partition(".")[0])
    return value


Flag = Annotated[bool, BeforeValidator(lambda value: _as(_FLAGS, value))]
"""A boolean, or its name as a text."""

Cut = Annotated[bool, BeforeValidator(lambda value: _as(_CUTS, value))]
"""Whether longer texts are cut: a boolean, its name, or where they are cut."""

Whole = Annotated[int, BeforeValidator(_whole)]
"""An integer, also as 384.0 or "384"."""


class TolerantRequest(BaseModel):
    """A body in which null means nothing, and fields of other APIs are understood or refused."""

    model_config = OPEN

    @model_validator(mode="before")
    @classmethod
    def _understood(cls, sent: Any) -> Any:
        if not isinstance(sent, dict):
            return sent
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        given = {name: value for name, value in sent.items() if value is not None or name in required}
        _rename_aliases(given, cls.model_fields)
        _check_foreign(given, cls.model_fields)
        return given


def _rename_aliases(given: dict[str, Any], own: Collection[str]) -> None:
    """Rename fields that are called otherwise elsewhere."""
    for theirs, ours in _ALIASES.items():
        if theirs in given and theirs not in own and ours in own:
            value = given.pop(theirs)
            if given.setdefault(ours, value) != value:
                raise FieldError(f"{theirs} and {ours} are the same, and differ; send one of them", theirs)


def _check_foreign(given: Mapping[str, Any], own: Collection[str]) -> None:
    for name in given.keys() & _FOREIGN.keys() - own:
        harmless, remedy = _FOREIGN[name]
        if _as(_FLAGS, given[name]) not in harmless:
            raise FieldError(f"{name} must be {_shown(harmless[0])} or left out: {remedy}", name, "unsupported_value")


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
