"""What clients send as texts: one text, a list of texts, one text's token ids, or a list of those."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import PlainValidator

from m3_runtime.bundle.manifest import TokenizerInfo
from m3_runtime.errors import InputError, RequestTooLargeError
from m3_runtime.server.queue import Ids
from m3_runtime.tokenizer import check_text

TokenIds = list[int]


@dataclass(frozen=True)
class Texts:
    """S texts, each as a str or as token ids; `is_single` if the client sent one and no list."""

    items: tuple[str | TokenIds, ...]
    is_single: bool


def parse_texts(value: Any, name: str) -> Texts:
    """The texts of a field called `name`.

    Raises:
        InputError: something is neither a text nor token ids; the item is named.

    >>> parse_texts(["a", [5, 6]], "input")
    Texts(items=('a', [5, 6]), is_single=False)
    >>> parse_texts([5, 6], "input")
    Texts(items=([5, 6],), is_single=True)
    """
    if isinstance(value, str):
        return Texts((_text(value, name),), True)
    if not isinstance(value, list):
        raise InputError(
            f"{name} must be a text, a list of texts, or token ids (one list, or a list of lists), got {_kind(value)}"
        )
    if not value:
        raise InputError(f"{name} must hold at least one text, got an empty list")
    if _is_int(value[0]):
        return Texts((_token_ids(value, name),), True)
    return Texts(tuple(_item(item, f"{name}[{i}]") for i, item in enumerate(value)), False)


def _item(item: Any, name: str) -> str | TokenIds:
    if isinstance(item, str):
        return _text(item, name)
    if isinstance(item, list):
        return _token_ids(item, name)
    raise InputError(f"{name} must be a text or a list of token ids, got {_kind(item)}")


def _text(text: str, name: str) -> str:
    check_text(text, name)
    return text


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


def _field(name: str) -> Callable[[Any], Texts]:
    return lambda value: parse_texts(value, name)


_Schema = str | list[str] | list[int] | list[list[int]]
InputField = Annotated[Texts, PlainValidator(_field("input"), json_schema_input_type=_Schema)]
InputsField = Annotated[Texts, PlainValidator(_field("inputs"), json_schema_input_type=_Schema)]
TextsField = Annotated[Texts, PlainValidator(_field("texts"), json_schema_input_type=_Schema)]


def checked_ids(ids: Sequence[int], name: str, info: TokenizerInfo, vocab_size: int) -> Ids:
    """A client's token ids as a text's: with both special tokens, whether or not they were there.

    Raises:
        InputError: a number that is no id of this tokenizer; it is named.
    """
    for i, number in enumerate(ids):
        if not 0 <= number < vocab_size:
            raise InputError(
                f"{name}[{i}] is {number}, which is no token id: they go from 0 to {vocab_size - 1}; "
                "ids come from this model's tokenizer (POST /tokenize)"
            )
    whole = list(ids)
    if whole[:1] != [info.cls_id]:
        whole.insert(0, info.cls_id)
    if whole[-1] != info.eos_id or len(whole) == 1:
        whole.append(info.eos_id)
    return np.array(whole, np.int32)


def too_long(name: str, tokens: int, max_length: int) -> RequestTooLargeError:
    """The error of a text with too many tokens."""
    return RequestTooLargeError(
        f"{name} has {tokens} tokens, the limit is {max_length}; split the text, or let it be cut"
    )
