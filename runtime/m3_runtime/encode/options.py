"""The arguments of a call, checked once and frozen."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypedDict

from m3_runtime.bundle.manifest import LEAST_TOKENS, Head, ModelInfo
from m3_runtime.bundle.reader import Bundle
from m3_runtime.encode.batching import DEFAULT_TOKEN_BUDGET
from m3_runtime.encode.colbert import ColbertDtype, ColbertForm
from m3_runtime.errors import HeadError, InputError
from m3_runtime.sequences import member
from m3_runtime.tokenizer import OnTruncate

DEFAULT_BATCH_SIZE = 256
DEFAULT_MAX_LENGTH = 512
_MOST_THREADS = 4096


@dataclass(frozen=True)
class EncodeOptions:
    """How to encode: every field has been checked against the bundle."""

    heads: frozenset[Head]
    max_length: int
    batch_size: int
    token_budget: int
    on_truncate: OnTruncate
    colbert: ColbertForm


class BatchArguments(TypedDict, total=False):
    """Arguments of `M3Encoder.encode` other than texts, heads, and those of ColBERT rows."""

    batch_size: int
    token_budget: int
    max_length: int | None
    on_truncate: OnTruncate | str


class EncodeArguments(BatchArguments, total=False):
    """Arguments of `M3Encoder.encode` other than texts and heads."""

    colbert_dtype: ColbertDtype | str
    colbert_dim: int | None
    colbert_pool: int


def encode_options(
    manifest: ModelInfo,
    heads: Collection[Head],
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    max_length: int | None = None,
    on_truncate: OnTruncate | str = OnTruncate.TRUNCATE,
    colbert: ColbertForm = ColbertForm(),  # noqa: B008 - frozen
) -> EncodeOptions:
    """Check the arguments of a call, which are those of `M3Encoder.encode_heads`, for the bundle that will encode.

    Those of ColBERT rows have become one: see `colbert_form`.

    Raises:
        InputError: an argument is out of range, or no head is asked for.
        HeadError: the bundle has no such head.
    """
    return EncodeOptions(
        heads=checked_heads(manifest, heads),
        max_length=checked_max_length(max_length, manifest.geometry.max_tokens, "max_length"),
        batch_size=checked_integer(batch_size, "batch_size"),
        token_budget=checked_integer(token_budget, "token_budget"),
        on_truncate=member(OnTruncate, on_truncate, "on_truncate"),
        colbert=colbert,
    )


def colbert_form(
    bundle: Bundle, heads: Collection[Head], dtype: ColbertDtype | str, dim: int | None, pool: int
) -> ColbertForm:
    """How a call of these heads wants ColBERT rows; other arguments are those of `M3Encoder.encode`, less `colbert_`.

    Raises:
        InputError: an argument is out of range or without effect, or the bundle has no principal axes.
        HeadError: dimensions are asked for of a bundle without that head.
    """
    kind, size = member(ColbertDtype, dtype, "colbert_dtype"), checked_integer(pool, "colbert_pool")
    changes = {"dtype": kind is not ColbertDtype.FLOAT32, "dim": dim is not None, "pool": size > 1}
    if Head.COLBERT not in heads and (given := [name for name, is_given in changes.items() if is_given]):
        is_there = Head.COLBERT in bundle.manifest.heads
        reason = "are not asked for; ask for them, or" if is_there else "the bundle has not;"
        raise InputError(f"colbert_{given[0]} is of ColBERT vectors, which {reason} leave it out")
    return ColbertForm(kind, None if dim is None else bundle.colbert_axes(dim), size)


def checked_heads(manifest: ModelInfo, wanted: Collection[Head]) -> frozenset[Head]:
    """The heads of a call.

    Raises:
        InputError: no head is asked for.
        HeadError: the bundle has no such head.
    """
    if not wanted:
        raise InputError("no head is asked for; set at least one of return_dense, return_sparse, return_colbert_vecs")
    for head in Head:
        if head in wanted and head not in manifest.heads:
            names = ", ".join(h.value for h in manifest.heads)
            raise HeadError(f"the bundle has no {head.value} head; it has: {names}")
    return frozenset(wanted)


def checked_max_length(value: int | None, limit: int, name: str, least: int = LEAST_TOKENS) -> int:
    """A usable maximum length; None is 512 or the model's limit, whichever is less.

    Raises:
        InputError: fewer than `least` tokens (two specials and one of content), or more than the model takes.
    """
    if value is None:
        return min(DEFAULT_MAX_LENGTH, limit)
    length = checked_integer(value, name, least)
    if length > limit:
        raise InputError(f"{name} is {length}, but the model takes at most {limit} tokens (specials included)")
    return length


def checked_threads(threads: int) -> int:
    """A usable thread count.

    Raises:
        InputError: not an integer of at least 1, or more than any machine has cores: engines crash on such numbers.
    """
    if (count := checked_integer(threads, "threads")) > _MOST_THREADS:
        raise InputError(
            f"threads must be at most {_MOST_THREADS}, got {count}; leave it out to use this machine's cores"
        )
    return count


def checked_integer(value: object, name: str, least: int = 1) -> int:
    """A usable number.

    Raises:
        InputError: not an integer of at least `least`; the error calls it `name`.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InputError(f"{name} must be an integer, got {type(value).__name__}")
    number = int(value.__index__())
    if number < least:
        raise InputError(f"{name} must be at least {least}, got {number}")
    return number
