"""What goes into a database, and how it is searched."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from numbers import Integral
from typing import Any

from m3_runtime.bundle.manifest import ENCODER_HEADS, Head
from m3_runtime.bundle.reader import Bundle
from m3_runtime.bundle.space import check_space
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import InputError, PartlyAddedError
from m3_runtime.opened_model import check_kind
from m3_runtime.sequences import in_order
from m3_runtime.tokenizer import check_text

_log = logging.getLogger("m3_runtime")
NOTE_KEYS = ("m3_space_id", "m3_variant")
STEP_PASSAGES = 32
"""Passages that are encoded at a time."""


class Mode(StrEnum):
    """How to search.

    HYBRID fuses the dense and the sparse ranking by their ranks (RRF); RERANKED orders what HYBRID finds by ColBERT.
    COLBERT alone compares the query with every passage: exact, and slow in a large collection.
    """

    DENSE = "dense"
    SPARSE = "sparse"
    COLBERT = "colbert"
    HYBRID = "hybrid"
    RERANKED = "reranked"

    @property
    def heads(self) -> frozenset[Head]:
        """Heads of the query that it takes."""
        several = {Mode.HYBRID: frozenset((Head.DENSE, Head.SPARSE)), Mode.RERANKED: frozenset(ENCODER_HEADS)}
        return several.get(self) or frozenset((Head(self.value),))


@dataclass(frozen=True)
class Passage:
    """A text to keep, with a `payload`. An id is an integer or a text; Qdrant's integers are 0 or more."""

    id: int | str
    text: str
    payload: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """See that its parts are what they must be, so that the error names the passage.

        Raises:
            InputError: the id is neither an integer nor a text, or the text or the payload is none.
        """
        if isinstance(self.id, bool) or not isinstance(self.id, Integral | str):
            raise InputError(f"passage {self.id!r}: its id must be an int or a str, got {type(self.id).__name__}")
        check_text(str(self.id), f"passage {self.id!r}: its id")
        check_text(self.text, f"passage {self.id!r}: text")
        if not isinstance(self.payload, Mapping):
            raise InputError(f"passage {self.id!r}: payload must be a mapping, got {type(self.payload).__name__}")
        if strange := [key for key in self.payload if not isinstance(key, str)]:
            raise InputError(f"passage {self.id!r}: keys of its payload must be str, got {strange[0]!r}")


@dataclass(frozen=True)
class Added:
    """What `add` did.

    Attributes:
        written: how many passages went in.
        put_aside: those that the store cannot hold, by their ids, and why; all others went in.
    """

    written: int
    put_aside: Mapping[int | str, str]


def add_in_steps(
    passages: Iterable[Passage],
    write: Callable[[list[Passage]], Iterable[Sequence[Passage]]],
    why_not: Callable[[Passage], str | None],
) -> Added:
    """Write passages, some at a time, in their order.

    `write` writes those of a step and gives those of each request once they are in; `why_not` says why the store cannot
    hold a passage, or None.

    Raises:
        InputError: an item is no passage, or not what it must be; nothing of its step is written.
        PartlyAddedError: something failed after some passages were written. An interruption stays what it is, and has a
            note of what was written.
    """
    waiting = in_order(passages, "expected passages")
    written, last_id = 0, None
    put_aside: dict[int | str, str] = {}
    try:
        while some := list(islice(waiting, STEP_PASSAGES)):
            reasons = [why_not(checked_passage(passage)) for passage in some]
            put_aside |= {p.id: reason for p, reason in zip(some, reasons, strict=True) if reason}
            fitting = [p for p, reason in zip(some, reasons, strict=True) if not reason]
            for done in write(fitting) if fitting else ():
                written, last_id = written + len(done), done[-1].id
    except BaseException as error:
        if last_id is None:
            raise
        message = (
            f"{written} passages were written, the last with id {last_id!r}, and those after it were not; an id that "
            "is there is replaced, so the same passages can be added again"
        )
        if isinstance(error, Exception):
            raise PartlyAddedError(f"{error or type(error).__name__}; {message}", written, last_id) from error
        _log.warning("interrupted: %s", message)
        error.add_note(message)
        raise
    for name, reason in put_aside.items():
        _log.warning("passage %r was not added: %s", name, reason)
    return Added(written, put_aside)


def last_of_each_id(passages: Iterable[Passage], stored_id: Callable[[int | str], Hashable] = str) -> list[Passage]:
    """Passages without those whose id, as the store has it, comes again later: the last counts.

    >>> [p.text for p in last_of_each_id([Passage(1, "a"), Passage("2", "b"), Passage("1", "c")])]
    ['c', 'b']
    """
    return list({stored_id(passage.id): passage for passage in passages}.values())


class PassageStore(ABC):
    """A collection of a database that one encoder fills with passages and their vectors."""

    def __init__(self, encoder: M3Encoder, heads: Collection[Head]) -> None:
        """Of the encoder's vectors the store keeps those of `heads`."""
        self._encoder, self._heads = encoder, heads

    def add(self, passages: Iterable[Passage], *, max_length: int | None = None) -> Added:
        """Encode and write passages, 32 at a time; an id that is there is replaced.

        What the store cannot hold is put aside, and the rest goes in.

        Args:
            passages: any number of them.
            max_length: tokens per text; None as in `M3Encoder.encode`.

        Raises:
            InputError: a passage is not what it must be; it is named. Or the store cannot be written to now.
            HeadError: the bundle lacks a head that the store keeps.
            PartlyAddedError: something failed after some passages were written; the same call can be repeated.
        """

        def write(some: list[Passage]) -> Iterable[Sequence[Passage]]:
            last = last_of_each_id(some, self._stored_id)
            texts = [passage.text for passage in last]
            return self._write(last, self._encoder.encode_heads(texts, self._heads, max_length=max_length).logged())

        return add_in_steps(passages, write, self._why_not)

    @abstractmethod
    def _write(self, passages: list[Passage], vectors: Encoding) -> Iterable[Sequence[Passage]]:
        """Write passages of different ids, with their vectors; give those of each request once they are in."""

    @staticmethod
    @abstractmethod
    def _why_not(passage: Passage) -> str | None:
        """Why the store cannot hold a passage; None if it can."""

    @staticmethod
    def _stored_id(passage_id: int | str) -> Hashable:
        """A passage's id as the store has it."""
        return str(passage_id)


def why_too_long(passage: Passage, store: str, id_bytes: int, text_bytes: int | None = None) -> str | None:
    """Why a store with such limits cannot hold a passage.

    >>> why_too_long(Passage("bees", "Bees dance."), "this store", 3)
    'its id has 4 bytes, this store holds 3'
    """
    for name, text, most in (("id", str(passage.id), id_bytes), ("text", passage.text, text_bytes)):
        if most is not None and (size := len(text.encode())) > most:
            return f"its {name} has {size} bytes, {store} holds {most}" + ("; split it" if name == "text" else "")
    return None


def as_json(value: Mapping[str, Any], where: str) -> str:
    """A mapping as JSON; `where` is how an error calls it.

    Raises:
        InputError: it is no mapping, or has something that JSON has not.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be a mapping, got {type(value).__name__}")
    try:
        text = json.dumps(dict(value), ensure_ascii=False, allow_nan=False)
        text.encode()  # half a surrogate pair is no text
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{where} cannot be written as JSON: {error}") from error
    return text


def payload_as_json(passage: Passage) -> str:
    """A passage's payload as JSON.

    Raises:
        InputError: it has something that JSON has not; the passage is named.
    """
    return as_json(passage.payload, f"passage {passage.id!r}: its payload")


def checked_passage(item: object) -> Passage:
    """The item, which is a passage.

    Raises:
        InputError: it is none, or not what it must be.
    """
    if not isinstance(item, Passage):
        raise InputError(f"expected a Passage, got {type(item).__name__}; make it with Passage(id, text, payload)")
    item.check()
    return item


def check_counts(limit: int, candidates: int) -> None:
    """Check how many hits a search gives, and how many candidates it fuses or reorders.

    Raises:
        InputError: one is no integer from 1.
    """
    for name, number in (("limit", limit), ("candidates", candidates)):
        if not isinstance(number, Integral) or isinstance(number, bool) or number < 1:
            raise InputError(f"{name} must be an integer from 1, got {number!r}")


def notes_of(encoder: M3Encoder) -> dict[str, str]:
    """What a database keeps with a collection, so that `check_collection` knows what filled it."""
    return dict(zip(NOTE_KEYS, (encoder.space_id, encoder.variant.name), strict=True))


def check_encoder(encoder: M3Encoder) -> None:
    """See that what is to fill a store is an open encoder.

    Raises:
        InputError: it is a reranker, or something else.
    """
    bundle = getattr(encoder, "bundle", None)
    if not isinstance(bundle, Bundle):
        raise InputError(f"expected an open M3Encoder, got {type(encoder).__name__}")
    check_kind(bundle, is_reranker=False)


def check_collection(
    name: str, notes: Mapping[str, Any], encoder: M3Encoder, keys: tuple[str, str] = NOTE_KEYS
) -> None:
    """See that a collection was filled from the encoder's vector space, by the notes that the database keeps with it.

    Raises:
        InputError: the collection does not say which vector space it holds, or the encoder is none.
        SpaceMismatchError: as `check_space`, whose warnings it gives too.
    """
    check_encoder(encoder)
    if not notes.keys() >= set(keys):
        raise InputError(
            f"collection {name!r} does not say which vector space it holds; expected {keys[0]} and {keys[1]} in its "
            "metadata, as `create` writes them"
        )
    check_space(notes[keys[0]], notes[keys[1]], encoder)
