"""A precision plan: for each of a model's projections, how it is multiplied. Values, and their JSON form."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from m3_export.errors import PlanError
from m3_runtime.manifest import Geometry, ProjectionPrecision

PLAN_SCHEMA = 1


class Kind(StrEnum):
    """The four projections of a layer; query, key and value read the same input and are planned as one."""

    QKV = "qkv"
    ATTENTION_OUT = "attention_out"
    FFN_IN = "ffn_in"
    FFN_OUT = "ffn_out"

    @property
    def weights(self) -> tuple[str, ...]:
        """The names of its weights in a layer."""
        return ("query", "key", "value") if self is Kind.QKV else (self.value,)


class Precision(StrEnum):
    """Of one projection. Weights are int8 per column except in float."""

    STATIC = "static"  # activations int8, one range for all texts, from calibration
    DYNAMIC = "dynamic"  # activations int8, ranges measured on each token while it runs
    FLOAT = "float"


@dataclass(frozen=True)
class Projection:
    """One place in the model, `layer.3.ffn_in`, say."""

    layer: int
    kind: Kind

    def __str__(self) -> str:
        return f"layer.{self.layer}.{self.kind}"

    @classmethod
    def parse(cls, name: str) -> "Projection":
        """The reverse of `str`.

        Raises:
            PlanError: no projection has such a name.

        >>> str(Projection.parse("layer.3.ffn_in"))
        'layer.3.ffn_in'
        """
        word, _, rest = name.partition(".")
        layer, _, kind = rest.partition(".")
        if word != "layer" or not layer.isdecimal() or kind not in list(Kind):
            kinds = ", ".join(Kind)
            raise PlanError(f"unknown projection {name!r}; expected layer.N.KIND with KIND one of: {kinds}")
        return cls(int(layer), Kind(kind))


@dataclass(frozen=True)
class Choice:
    """How one projection is multiplied.

    `smoothing` is SmoothQuant's strength α (Xiao et al. 2022): activations are divided, and weight rows multiplied, by
    max|x|^α / max|w|^(1-α) per channel; 0 leaves them alone. `clip` is the share of the calibrated range that a static
    range keeps. `columns_apart` is how many outlier channels are multiplied apart in float.
    """

    precision: Precision
    smoothing: float = 0.0
    clip: float = 1.0
    columns_apart: int = 0


FLOAT = Choice(Precision.FLOAT)
DYNAMIC = Choice(Precision.DYNAMIC)


@dataclass(frozen=True)
class Plan:
    """The choices of one variant.

    `group` is how many neighbouring values of a token share a range where activations are dynamic; 0 is the whole
    token.
    """

    choices: Mapping[Projection, Choice]
    group: int

    @classmethod
    def uniform(cls, layers: int, choice: Choice, group: int) -> "Plan":
        """The same choice for every projection."""
        return cls(dict.fromkeys(projections(layers), choice), group)

    def lines(self) -> tuple[ProjectionPrecision, ...]:
        """The form in which a manifest tells it."""
        return tuple(
            ProjectionPrecision(str(place), choice.precision.value, choice.smoothing, choice.clip, choice.columns_apart)
            for place, choice in self.choices.items()
        )


def projections(layers: int) -> tuple[Projection, ...]:
    """All projections of a model, in the order in which they run: 96 for BGE-M3's 24 layers."""
    return tuple(Projection(layer, kind) for layer in range(layers) for kind in Kind)


def plans_to_text(plans: Mapping[str, Plan], geometry: Geometry) -> str:
    """The plans of some variants as a file that `read_plans` takes."""
    content = {
        "plan_schema": PLAN_SCHEMA,
        "geometry": _sizes(geometry),
        "variants": {
            name: {"group": plan.group, "projections": {str(p): _choice_to_json(c) for p, c in plan.choices.items()}}
            for name, plan in plans.items()
        },
    }
    return json.dumps(content, indent=1) + "\n"


def read_plans(path: Path, geometry: Geometry) -> dict[str, Plan]:
    """Read plans for a model of this geometry, by the name of their variant.

    Raises:
        PlanError: the file cannot be read, is for another geometry, names what is not there, or leaves something out.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlanError(f"plan {path}: {error}") from error
    try:
        return _plans(content, geometry)
    except PlanError as error:
        raise PlanError(f"plan {path}: {error}") from error


def _plans(content: Any, geometry: Geometry) -> dict[str, Plan]:
    if not isinstance(content, dict) or content.get("plan_schema") != PLAN_SCHEMA:
        raise PlanError(f"expected a JSON object with plan_schema {PLAN_SCHEMA}, as m3-export writes in plan.json")
    if content.get("geometry") != _sizes(geometry):
        raise PlanError(
            f"it is for another geometry: {_said(content.get('geometry'))}; this model has {_said(_sizes(geometry))}"
        )
    variants = content.get("variants")
    if not isinstance(variants, dict) or not variants:
        raise PlanError("it has no variants")
    return {name: _plan(name, entry, geometry.layers) for name, entry in variants.items()}


def _plan(name: str, entry: Any, layers: int) -> Plan:
    listed = entry.get("projections") if isinstance(entry, dict) else None
    group = entry.get("group") if isinstance(entry, dict) else None
    if not isinstance(listed, dict) or not isinstance(group, int) or isinstance(group, bool) or group < 0:
        raise PlanError(f"variant {name!r} needs a group (0 or more) and projections")
    given = {Projection.parse(place): _choice(place, choice) for place, choice in listed.items()}
    wanted = projections(layers)
    if foreign := [place for place in given if place not in wanted]:
        raise PlanError(f"variant {name!r}: the model has no {foreign[0]}; it has {layers} layers")
    if missing := [place for place in wanted if place not in given]:
        raise PlanError(
            f"variant {name!r} says nothing about {missing[0]} ({len(missing)} of {len(wanted)} are missing)"
        )
    return Plan({place: given[place] for place in wanted}, group)


def _choice(place: str, content: Any) -> Choice:
    allowed = {"precision", "smoothing", "clip", "columns_apart"}
    if not isinstance(content, dict) or content.get("precision") not in list(Precision):
        raise PlanError(f"{place}: precision must be one of {', '.join(Precision)}, got {content!r}")
    if unknown := sorted(set(content) - allowed):
        raise PlanError(f"{place}: unknown key {unknown[0]!r}; a choice has: {', '.join(sorted(allowed))}")
    smoothing, clip = _share(place, content, "smoothing", 0.0), _share(place, content, "clip", 1.0)
    apart = content.get("columns_apart", 0)
    if not isinstance(apart, int) or isinstance(apart, bool) or not 0 <= apart <= 64 or clip == 0:
        raise PlanError(f"{place}: expected 0 to 64 columns_apart and a clip above 0, got {content!r}")
    return Choice(Precision(content["precision"]), smoothing, clip, apart)


def _share(place: str, content: Mapping[str, Any], key: str, default: float) -> float:
    value = content.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise PlanError(f"{place}: {key} must be a number from 0 to 1, got {value!r}")
    return float(value)


def _choice_to_json(choice: Choice) -> dict[str, object]:
    """Only what is not the default, so that a plan stays readable."""
    default = Choice(choice.precision)
    rest = {key: getattr(choice, key) for key in ("smoothing", "clip", "columns_apart")}
    changed = {key: value for key, value in rest.items() if value != getattr(default, key)}
    return {"precision": choice.precision.value, **changed}


def _sizes(geometry: Geometry) -> dict[str, int]:
    return {"layers": geometry.layers, "hidden_size": geometry.hidden_size, "ffn_size": geometry.ffn_size}


def _said(sizes: object) -> str:
    items: Iterable[tuple[str, object]] = sizes.items() if isinstance(sizes, dict) else ()
    return ", ".join(f"{key} {value}" for key, value in items) or repr(sizes)
