"""A precision plan: the quantization scheme of each of a model's projections. Values, and their JSON form."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from m3_export.errors import PlanError
from m3_runtime.bundle.manifest import Geometry, ProjectionPrecision

PLAN_SCHEMA = 1
_OLD_KEYS = {"columns_apart": "float_columns"}  # of plans that release 0.1 wrote


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


class FloatType(StrEnum):
    """What everything that is not int8 is computed in. A processor that does not multiply bf16 takes f32 instead."""

    F32 = "f32"
    BF16 = "bf16"


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
class Scheme:
    """The quantization scheme of one projection.

    Attributes:
        precision: of the product.
        smoothing: SmoothQuant's strength α (Xiao et al. 2022): activations are divided, and weight rows multiplied, by
            max|x|^α / max|w|^(1-α) per channel; 0 leaves them alone.
        clip: share of the calibrated range that a static range keeps.
        float_columns: outlier columns that are multiplied in float (LLM.int8, Dettmers et al. 2022).
    """

    precision: Precision
    smoothing: float = 0.0
    clip: float = 1.0
    float_columns: int = 0


FLOAT = Scheme(Precision.FLOAT)
DYNAMIC = Scheme(Precision.DYNAMIC)


@dataclass(frozen=True)
class Setting:
    """What a compiled model has once: the float type and the group of dynamic ranges (0: a token)."""

    float_type: FloatType
    group: int


@dataclass(frozen=True)
class PrecisionPlan:
    """The schemes of one variant.

    Attributes:
        schemes: of every projection.
        group: how many neighbouring values of a token share a dynamic range; 0 is the whole token.
        float_type: what is computed in where nothing is quantized: float projections, attention, heads.
    """

    schemes: Mapping[Projection, Scheme]
    group: int
    float_type: FloatType = FloatType.F32

    @property
    def setting(self) -> Setting:
        """What all its projections share."""
        return Setting(self.float_type, self.group)

    @classmethod
    def uniform(cls, layers: int, scheme: Scheme, group: int) -> "PrecisionPlan":
        """The same scheme for every projection."""
        return cls(dict.fromkeys(projections(layers), scheme), group)

    def lines(self) -> tuple[ProjectionPrecision, ...]:
        """The form in which a manifest lists it."""
        return tuple(
            ProjectionPrecision(str(name), scheme.precision.value, scheme.smoothing, scheme.clip, scheme.float_columns)
            for name, scheme in self.schemes.items()
        )

    def __hash__(self) -> int:
        """Equal plans have equal hashes; a dict has none of its own."""
        return hash((frozenset(self.schemes.items()), self.group, self.float_type))

    def __str__(self) -> str:
        """How many projections have which precision, how the dynamic ones have their ranges, and the float type.

        >>> str(PrecisionPlan.uniform(2, DYNAMIC, 128))
        '8 dynamic (group 128), f32'
        >>> str(PrecisionPlan.uniform(2, Scheme(Precision.DYNAMIC, smoothing=0.5), 0))
        '8 dynamic (by token, smoothed), f32'
        """
        precisions = [scheme.precision for scheme in self.schemes.values()]
        counts = [f"{precisions.count(p)} {p}{self._ranges_in_words(p)}" for p in Precision if p in precisions]
        return ", ".join([*counts, self.float_type.value])

    def _ranges_in_words(self, precision: Precision) -> str:
        if precision is not Precision.DYNAMIC:
            return ""
        smoothed = [scheme.smoothing > 0 for scheme in self.schemes.values() if scheme.precision is precision]
        group = f"group {self.group}" if self.group else "by token"
        share = "" if all(smoothed) else f"{sum(smoothed)} "
        return f" ({group}, {share}smoothed)" if any(smoothed) else f" ({group})"


def projections(layers: int) -> tuple[Projection, ...]:
    """All projections of a model, in the order in which they run: 96 for BGE-M3's 24 layers."""
    return tuple(Projection(layer, kind) for layer in range(layers) for kind in Kind)


def plans_to_text(plans: Mapping[str, PrecisionPlan], geometry: Geometry) -> str:
    """The plans of some variants as a file that `read_plans` takes."""
    content = {
        "plan_schema": PLAN_SCHEMA,
        "geometry": _sizes(geometry),
        "variants": {name: _plan_to_json(plan) for name, plan in plans.items()},
    }
    return json.dumps(content, indent=1) + "\n"


def _plan_to_json(plan: PrecisionPlan) -> dict[str, Any]:
    schemes = {str(name): _scheme_to_json(scheme) for name, scheme in plan.schemes.items()}
    return {"group": plan.group, "float_type": plan.float_type.value, "projections": schemes}


def read_plans(path: Path, geometry: Geometry) -> dict[str, PrecisionPlan]:
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


def _plans(content: Any, geometry: Geometry) -> dict[str, PrecisionPlan]:
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


def _plan(name: str, entry: Any, layers: int) -> PrecisionPlan:
    listed = entry.get("projections") if isinstance(entry, dict) else None
    group = entry.get("group") if isinstance(entry, dict) else None
    if not isinstance(listed, dict) or not isinstance(group, int) or isinstance(group, bool) or group < 0:
        raise PlanError(f"variant {name!r} needs a group (0 or more) and projections")
    float_type = entry.get("float_type", FloatType.F32.value)
    if float_type not in list(FloatType):
        raise PlanError(f"variant {name!r}: float_type must be one of {', '.join(FloatType)}, got {float_type!r}")
    given = {Projection.parse(key): _scheme(key, content) for key, content in listed.items()}
    wanted = projections(layers)
    if foreign := [key for key in given if key not in wanted]:
        raise PlanError(f"variant {name!r}: the model has no {foreign[0]}; it has {layers} layers")
    if missing := [key for key in wanted if key not in given]:
        raise PlanError(
            f"variant {name!r} says nothing about {missing[0]} ({len(missing)} of {len(wanted)} are missing)"
        )
    return PrecisionPlan({key: given[key] for key in wanted}, group, FloatType(float_type))


def _scheme(key: str, content: Any) -> Scheme:
    if not isinstance(content, dict) or content.get("precision") not in list(Precision):
        raise PlanError(f"{key}: precision must be one of {', '.join(Precision)}, got {content!r}")
    content = {_OLD_KEYS.get(name, name): value for name, value in content.items()}
    allowed = {"precision", "smoothing", "clip", "float_columns"}
    if unknown := sorted(set(content) - allowed):
        raise PlanError(f"{key}: unknown key {unknown[0]!r}; a scheme has: {', '.join(sorted(allowed))}")
    smoothing, clip = _share(key, content, "smoothing", 0.0), _share(key, content, "clip", 1.0)
    columns = content.get("float_columns", 0)
    if not isinstance(columns, int) or isinstance(columns, bool) or not 0 <= columns <= 64 or clip == 0:
        raise PlanError(f"{key}: expected 0 to 64 float_columns and a clip above 0, got {content!r}")
    return Scheme(Precision(content["precision"]), smoothing, clip, columns)


def _share(name: str, content: Mapping[str, Any], key: str, default: float) -> float:
    value = content.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise PlanError(f"{name}: {key} must be a number from 0 to 1, got {value!r}")
    return float(value)


def _scheme_to_json(scheme: Scheme) -> dict[str, object]:
    """Only what is not the default, so that a plan stays readable."""
    default = Scheme(scheme.precision)
    rest = {key: getattr(scheme, key) for key in ("smoothing", "clip", "float_columns")}
    changed = {key: value for key, value in rest.items() if value != getattr(default, key)}
    return {"precision": scheme.precision.value, **changed}


def _sizes(geometry: Geometry) -> dict[str, int]:
    return {"layers": geometry.layers, "hidden_size": geometry.hidden_size, "ffn_size": geometry.ffn_size}


def _said(sizes: object) -> str:
    items: Iterable[tuple[str, object]] = sizes.items() if isinstance(sizes, dict) else ()
    return ", ".join(f"{key} {value}" for key, value in items) or repr(sizes)
