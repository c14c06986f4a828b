"""What the user wants from an export."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from m3_export.errors import OptionsError
from m3_export.plan.costs import Objective
from m3_export.verify.budget import AnyBudget, Budget, ScoreBudget
from m3_runtime.bundle.manifest import ENCODER_HEADS, Head, Pooling
from m3_runtime.errors import InputError
from m3_runtime.words import distinct_words

M = TypeVar("M", bound=StrEnum)


class VariantName(StrEnum):
    """What an export can write."""

    ONNX_FP32 = "onnx-fp32"
    ONNX_INT8 = "onnx-int8"
    OPENVINO_INT8 = "openvino-int8"


class Target(StrEnum):
    """The processor that a bundle is planned for."""

    HERE = "here"  # costs are measured on this machine
    VNNI = "vnni"  # x86 with AVX-512 VNNI or AVX-VNNI: recorded costs; static INT8 may have to be simulated
    AMX = "amx"  # x86 with AMX


@dataclass(frozen=True)
class ExportOptions:
    """Declared intent. None for heads, pooling and normalize: as the checkpoint says (BGE-M3's where it says nothing).

    A budget given as text is read when it is known whether the checkpoint is an encoder or a reranker. At most one of
    `languages` and `vocabulary_from`, which are files of texts, says which pieces stay.
    """

    variants: tuple[VariantName, ...] = tuple(VariantName)
    heads: tuple[Head, ...] | None = None
    pooling: Pooling | None = None
    normalize: bool | None = None
    budget: AnyBudget | str = "balanced"
    allow_over_budget: bool = False
    allow_silent_head: bool = False
    target: Target = Target.HERE
    objective: Objective = Objective.BALANCED
    plan: Path | None = None
    calibration_texts: Path | None = None
    probe_texts: Path | None = None
    languages: tuple[str, ...] = ()
    vocabulary_from: tuple[str, ...] = ()

    @property
    def has_int8(self) -> bool:
        """Whether a variant other than FP32 is written."""
        return any(name is not VariantName.ONNX_FP32 for name in self.variants)

    def budget_of(self, *, is_reranker: bool) -> AnyBudget:
        """The budget of an encoder, or of a reranker.

        Raises:
            OptionsError: it names what such a model does not have.
        """
        text = self.budget if isinstance(self.budget, str) else self.budget.to_text()
        return ScoreBudget.parse(text) if is_reranker else Budget.parse(text)


def words_of_option(text: str, what: str) -> list[str]:
    """As `distinct_words`, of an export's option.

    Raises:
        OptionsError: a word is empty, or comes twice.
    """
    try:
        return distinct_words(text, what)
    except InputError as error:
        raise OptionsError(str(error)) from error


def parse_variants(text: str) -> tuple[VariantName, ...]:
    """`onnx-fp32,onnx-int8` as variant names, in the order of `VariantName`.

    Raises:
        OptionsError: an unknown name, one that comes twice, or none.
    """
    return _members(VariantName, text, "variant")


def parse_heads(text: str) -> tuple[Head, ...]:
    """`dense` or `dense,sparse,colbert` as heads.

    Raises:
        OptionsError: anything else; the two extra heads of a checkpoint come together.
    """
    heads = _members(ENCODER_HEADS, text, "head")
    if heads not in ((Head.DENSE,), ENCODER_HEADS):
        raise OptionsError("heads must be 'dense' or 'dense,sparse,colbert'")
    return heads


def _members(kind: Iterable[M], text: str, what: str) -> tuple[M, ...]:
    known = [member.value for member in kind]
    in_words = f"expected some of: {', '.join(known)}"
    if not text.replace(",", "").strip():
        raise OptionsError(f"no {what} named; {in_words}")
    wanted = words_of_option(text, what)
    if unknown := [name for name in wanted if name not in known]:
        case = ", in lower case" if unknown[0].lower() in known else ""
        raise OptionsError(f"unknown {what} {unknown[0]!r}; {in_words}{case}")
    return tuple(member for member in kind if member.value in wanted)
