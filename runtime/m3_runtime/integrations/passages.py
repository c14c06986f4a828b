"""What goes into a database, and how it is searched."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from numbers import Integral
from typing import Any

from m3_runtime.bundle.manifest import ENCODER_HEADS, Head
from m3_runtime.bundle.reader import Bundle
from m3_runtime.bundle.space import check_space
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import InputError, PartlyAddedError
from m3_runtime.opened_model import check_kind
from m3_runtime.sequences import in_order
from m3_runtime.tokenizer import check_text

_log = logging.getLogger("m3_runtime")
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
    """A text to keep; `payload` lies beside it. An id is an integer or a text; Qdrant's integers are 0 or more."""

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


Write = Callable[[list[Passage]], Iterable[Sequence[Passage]]]
"""Writes some passages, request by request, and gives those of each request once they are in."""
WhyNot = Callable[[Passage], str | None]
"""Why a store cannot hold a passage; None if it can."""


def add_in_steps(passages: Iterable[Passage], write: Write, why_not: WhyNot) -> Added:
    """Write passages, some at a time, in their order.

    Args:
        passages: any number of them.
        write: writes those of one step.
        why_not: why the store cannot hold a passage.

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


def last_of_each_id(passages: Iterable[Passage]) -> list[Passage]:
    """Passages without those whose id, as text, comes again later: the last counts.

    >>> [p.text for p in last_of_each_id([Passage(1, "a"), Passage("2", "b"), Passage("1", "c")])]
    ['c', 'b']
    """
    return list({str(passage.id): passage for passage in passages}.values())


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
    """Check how many hits a search gives, and how many candidates it fuses or orders anew.

    Raises:
        InputError: one is no integer from 1.
    """
    for name, number in (("limit", limit), ("candidates", candidates)):
        if not isinstance(number, Integral) or isinstance(number, bool) or number < 1:
            raise InputError(f"{name} must be an integer from 1, got {number!r}")


def checked_mode(mode: Mode | str) -> Mode:
    """The mode of that name.

    >>> checked_mode("hybrid")
    <Mode.HYBRID: 'hybrid'>

    Raises:
        InputError: there is none.
    """
    try:
        return Mode(mode)
    except ValueError as error:
        raise InputError(f"mode must be one of {', '.join(Mode)}, got {mode!r}") from error


def check_encoder(encoder: M3Encoder) -> None:
    """See that what is to fill a store is an open encoder.

    Raises:
        InputError: it is a reranker, or something else.
    """
    bundle = getattr(encoder, "bundle", None)
    if not isinstance(bundle, Bundle):
        raise InputError(f"expected an open M3Encoder, got {type(encoder).__name__}")
    check_kind(bundle, is_reranker=False)


def check_collection(name: str, notes: Mapping[str, Any], keys: tuple[str, str], encoder: M3Encoder) -> None:
    """See that a collection was filled from the encoder's vector space.

    Args:
        name: of the collection.
        notes: what the database keeps beside it.
        keys: under which keys `create` noted the space and the variant.
        encoder: whose vectors are to be added, or to search.

    Raises:
        InputError: the collection does not say which vector space it holds, or the encoder is none.
        SpaceMismatchError: it was filled from another vector space.

    Warns:
        VariantDriftWarning: the same space, computed by another variant.
    """
    check_encoder(encoder)
    space_key, variant_key = keys
    if space_key not in notes or variant_key not in notes:
        raise InputError(
            f"collection {name!r} does not say which vector space it holds; expected {space_key} and {variant_key} "
            "in its metadata, as `create` writes them"
        )
    check_space(notes[space_key], notes[variant_key], encoder)
