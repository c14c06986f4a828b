"""The recipe: what the user wants from an export, from flags or a TOML file."""

import tomllib
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from m3_export.errors import RecipeError
from m3_export.plan.costs import Objective
from m3_export.verify.budget import Budget
from m3_runtime.bundle.manifest import Head, Pooling

ALL_HEADS = (Head.DENSE, Head.SPARSE, Head.COLBERT)


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
class Recipe:
    """Declared intent. None for pooling and normalize: as the checkpoint says (BGE-M3's way where it says nothing)."""

    variants: tuple[VariantName, ...] = tuple(VariantName)
    heads: tuple[Head, ...] = ALL_HEADS
    pooling: Pooling | None = None
    normalize: bool | None = None
    budget: Budget = field(default_factory=Budget)
    allow_over_budget: bool = False
    target: Target = Target.HERE
    objective: Objective = Objective.BALANCED
    plan: Path | None = None
    calibration_texts: Path | None = None
    probe_texts: Path | None = None

    @classmethod
    def from_toml(cls, path: Path) -> "Recipe":
        """Read a recipe file.

        Raises:
            RecipeError: the file is missing, not TOML, or has a key or value that cannot be.
        """
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RecipeError(f"recipe {path}: {error}") from error
        recipe = cls()
        try:
            for key, value in data.items():
                recipe = replace(recipe, **{key: _read(key, value)})
        except RecipeError as error:
            raise RecipeError(f"recipe {path}: {error}") from error
        return recipe


def parse_variants(text: str) -> tuple[VariantName, ...]:
    """`onnx-fp32,onnx-int8` as variant names, in the order of `VariantName`, each once.

    Raises:
        RecipeError: an unknown name, or none.
    """
    return _members(VariantName, text.split(","), "variant")


def parse_heads(text: str) -> tuple[Head, ...]:
    """`dense` or `dense,sparse,colbert` as heads.

    Raises:
        RecipeError: anything else; the two extra heads of a checkpoint come together.
    """
    heads = _members(Head, text.split(","), "head")
    if heads not in ((Head.DENSE,), ALL_HEADS):
        raise RecipeError("heads must be 'dense' or 'dense,sparse,colbert'")
    return heads


def _members(kind: type[Any], words: list[str], what: str) -> tuple[Any, ...]:
    known = [member.value for member in kind]
    wanted = {word.strip() for word in words if word.strip()}
    if unknown := sorted(wanted - set(known)):
        raise RecipeError(f"unknown {what} {unknown[0]!r}; expected some of: {', '.join(known)}")
    if not wanted:
        raise RecipeError(f"no {what} named; expected some of: {', '.join(known)}")
    return tuple(member for member in kind if member.value in wanted)


def _read(key: str, value: Any) -> Any:
    if key in ("variants", "heads"):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise RecipeError(f"{key} must be a list of names, got {value!r}")
        return (parse_variants if key == "variants" else parse_heads)(",".join(value))
    if key == "pooling":
        return _members(Pooling, [str(value)], "pooling")[0]
    if key in ("normalize", "allow_over_budget"):
        if not isinstance(value, bool):
            raise RecipeError(f"{key} must be true or false, got {value!r}")
        return value
    if key == "target":
        return _members(Target, [str(value)], "target")[0]
    if key == "objective":
        return _members(Objective, [str(value)], "objective")[0]
    if key in ("plan", "calibration_texts", "probe_texts"):
        if not isinstance(value, str):
            raise RecipeError(f"{key} must be the path of a file, got {value!r}")
        return Path(value)
    if key == "budget":
        if isinstance(value, str):
            return Budget.parse(value)
        if not isinstance(value, dict):
            raise RecipeError(f"budget must be a name or a table of numbers, [budget], got {value!r}")
        return Budget.parse(",".join(f"{name}={number}" for name, number in value.items()))
    known = (
        "variants, heads, pooling, normalize, allow_over_budget, target, objective, plan, calibration_texts, "
        "probe_texts, budget"
    )
    raise RecipeError(f"unknown key {key!r}; a recipe has: {known}")
