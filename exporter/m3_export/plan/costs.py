"""What projections cost in time, as part of whole layers: measured on this processor, or recorded on another.

A product timed alone misleads: a static scheme also saves outside the product (one quantization for three readers,
fused into what comes before it). So models of a few layers are written by the writers and run by the engines that users
get, in turns: one per precision, and one per kind of projection and precision. What differs between them is what a
scheme costs.

    seconds(plan) = fixed + layers · layer + sum over projections of extra(kind, precision)    by shape and setting

`fixed` is the embedding and the heads, `layer` a layer whose projections all have the first precision that the engine
offers, `extra` what another precision adds to it (less than nothing, if it is faster). What the kinds add one by one is
levelled so that a model in one precision takes what was measured of it. A model that wants one token of each text (a
reranker, a dense-only encoder) runs its last layer for that token alone (`passes.last_layer_rows`), where a precision
adds next to nothing. Whole models have the last word: where the chosen plan compares otherwise with its start than
predicted, the costs of what was changed are corrected.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from m3_export.errors import PlanError
from m3_export.plan.plan import FloatType, Kind, Precision, PrecisionPlan, Projection, Setting
from m3_runtime.bundle.manifest import EngineName, Geometry, Head
from m3_runtime.io.atomic import write_whole

RECORDED = Path(__file__).parent / "recorded"
COSTS_SCHEMA = 1


@dataclass(frozen=True)
class Shape:
    """A batch that is timed: texts × tokens."""

    name: str
    texts: int
    tokens: int


SHAPES = (Shape("query", 1, 16), Shape("passage", 1, 128), Shape("batch", 16, 128))
PAIR_SHAPES = (Shape("query", 1, 64), Shape("passage", 1, 128), Shape("batch", 16, 128))
"""A reranker's: a query with a short passage, a pair, the pairs of a query. No pair has 16 tokens."""


def shapes_of(heads: Collection[Head]) -> tuple[Shape, ...]:
    """What is timed of a model with these heads. The names are the same, so objectives weigh all models alike."""
    return PAIR_SHAPES if Head.SCORE in heads else SHAPES


LAST_LAYER = {Kind.QKV: 2 / 3, Kind.ATTENTION_OUT: 0.0, Kind.FFN_IN: 0.0, Kind.FFN_OUT: 0.0}
"""The part of a projection that the last layer runs where one token is wanted: keys and values are of all tokens."""


class Objective(StrEnum):
    """What a plan is to be fast at."""

    LATENCY = "latency"
    BALANCED = "balanced"
    THROUGHPUT = "throughput"

    @property
    def weights(self) -> Mapping[str, float]:
        """What each shape counts; 1 together."""
        return {
            Objective.LATENCY: {"query": 0.7, "passage": 0.3, "batch": 0.0},
            Objective.BALANCED: {"query": 0.25, "passage": 0.25, "batch": 0.5},
            Objective.THROUGHPUT: {"query": 0.0, "passage": 0.1, "batch": 0.9},
        }[self]


Seconds = Mapping[str, float]  # by shape


def weighted(objective: Objective, seconds: Seconds, reference: Seconds) -> float:
    """One time out of the times of all shapes, each in parts of a reference.

    >>> weighted(Objective.BALANCED, {"query": 2, "passage": 1, "batch": 1}, {"query": 1, "passage": 1, "batch": 1})
    1.25
    """
    return sum(weight * seconds[shape] / reference[shape] for shape, weight in objective.weights.items())


@dataclass(frozen=True)
class Costs:
    """Times of one engine on one processor for a width of model.

    Attributes:
        engine: the engine.
        processor: its name.
        multipliers: its multipliers, see `CpuInfo.multipliers`.
        hidden_size: H of the model that was timed.
        ffn_size: its FFN's width.
        base: seconds by setting: of a model without layers, and of each layer at the first precision.
        extra: seconds that one projection adds in another precision, by setting; of a layer that runs for all tokens.
        is_one_token: the model wants one token of each text.
    """

    engine: EngineName
    processor: str
    multipliers: str
    hidden_size: int
    ffn_size: int
    base: Mapping[Setting, tuple[Seconds, Seconds]]
    extra: Mapping[Setting, Mapping[tuple[Kind, Precision], Seconds]]
    is_one_token: bool = False

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The settings that were timed."""
        return tuple(self.base)

    def precisions(self, setting: Setting) -> tuple[Precision, ...]:
        """What the engine offers there."""
        timed = {precision for _, precision in self.extra[setting]}
        return tuple(precision for precision in Precision if precision in timed)

    def seconds(self, plan: PrecisionPlan, layers: int) -> Seconds:
        """Predicted times of a plan for a model of so many layers."""
        fixed, layer = self.base[plan.setting]
        added = [self.added(plan.setting, name, scheme.precision, layers) for name, scheme in plan.schemes.items()]
        return {s: fixed[s] + layers * layer[s] + sum(seconds[s] for seconds in added) for s in fixed}

    def added(self, setting: Setting, projection: Projection, precision: Precision, layers: int) -> Seconds:
        """What a projection of a model of so many layers adds in a precision."""
        share = self._share(projection, layers)
        return {shape: share * seconds for shape, seconds in self.extra[setting][projection.kind, precision].items()}

    def _share(self, projection: Projection, layers: int) -> float:
        is_cut = self.is_one_token and projection.layer == layers - 1
        return LAST_LAYER[projection.kind] if is_cut else 1.0

    def corrected(self, plan: PrecisionPlan, start: PrecisionPlan, measured: tuple[Seconds, Seconds]) -> "Costs":
        """These costs, but such that they predict how two whole models' measured times compare.

        What was missing is added to the projections in which the plans differ, the same to each; where it is the float
        type, to every layer of that type.

        Args:
            plan: has other precisions than `start` in some projections, or another float type.
            start: what is predicted of it stays.
            measured: the seconds of both.
        """
        layers = len(plan.schemes) // len(Kind)
        expected, of_start = self.seconds(plan, layers), self.seconds(start, layers)
        missing = {s: of_start[s] * measured[0][s] / measured[1][s] - expected[s] for s in expected}
        if plan.float_type is not start.float_type:
            return replace(
                self,
                base={
                    setting: (fixed, {s: layer[s] + missing[s] / layers for s in layer})
                    if setting.float_type is plan.float_type
                    else (fixed, layer)
                    for setting, (fixed, layer) in self.base.items()
                },
            )
        changed = [p for p, scheme in plan.schemes.items() if scheme.precision is not start.schemes[p].precision]
        keys = {(p.kind, plan.schemes[p].precision) for p in changed}
        whole = sum(self._share(p, layers) for p in changed)
        if not whole:
            return self
        tables = {}
        for setting, table in self.extra.items():
            # a group is nothing to what is not dynamic
            akin = keys if setting == plan.setting else {key for key in keys if key[1] is not Precision.DYNAMIC}
            if setting.float_type is not plan.float_type:
                akin = set()
            tables[setting] = {
                key: {s: seconds[s] + (missing[s] / whole if key in akin else 0.0) for s in seconds}
                for key, seconds in table.items()
            }
        return replace(self, extra=tables)


def write_costs(path: Path, costs: Sequence[Costs], facts: Mapping[str, Any] | None = None) -> None:
    """Write times as a file that `read_costs` takes, with other facts beside them, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    content = {"costs_schema": COSTS_SCHEMA, "costs": [_to_json(c) for c in costs], **(facts or {})}
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode())


def read_costs(path: Path) -> tuple[Costs, ...]:
    """Read recorded times.

    Raises:
        PlanError: the file cannot be read, or is no file of recorded costs.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["costs_schema"] != COSTS_SCHEMA:
            raise PlanError(f"costs {path}: expected costs_schema {COSTS_SCHEMA}, got {content['costs_schema']!r}")
        return tuple(_from_json(entry) for entry in content["costs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError(f"costs {path}: {error!r}; m3-bench roofline --record writes such a file") from error


def recorded(engine: EngineName, geometry: Geometry, target: str, *, is_one_token: bool) -> Costs:
    """Times that the project keeps for a kind of processor (`vnni`, `amx`) and this width of model.

    What a projection adds is of a layer that runs for all tokens, so it serves whether or not the last one does.

    Raises:
        PlanError: none are kept for such a processor, or for this geometry.
    """
    kept = [costs for path in sorted(RECORDED.glob("*.json")) for costs in read_costs(path) if costs.engine is engine]
    of_target = [costs for costs in kept if costs.multipliers.partition("+")[0] == target]
    if not of_target and target == "amx":  # measured nowhere yet; VNNI's ratios between precisions are the nearest
        of_target = [costs for costs in kept if costs.multipliers.startswith("vnni")]
    for costs in of_target:
        if (costs.hidden_size, costs.ffn_size) == (geometry.hidden_size, geometry.ffn_size):
            return replace(costs, is_one_token=is_one_token)
    sizes = ", ".join(sorted({f"{c.hidden_size}/{c.ffn_size}" for c in of_target})) or "none"
    raise PlanError(
        f"no costs are recorded for {engine.value} on {target} and a model of hidden/FFN size "
        f"{geometry.hidden_size}/{geometry.ffn_size} (there are: {sizes}); export on such a processor, give a plan "
        "with --plan, or record them there with m3-bench roofline --record"
    )


def _to_json(costs: Costs) -> dict[str, Any]:
    return {
        "engine": costs.engine.value,
        "processor": costs.processor,
        "multipliers": costs.multipliers,
        "hidden_size": costs.hidden_size,
        "ffn_size": costs.ffn_size,
        **({"is_one_token": True} if costs.is_one_token else {}),
        "settings": [
            {
                "float_type": setting.float_type.value,
                "group": setting.group,
                "fixed_s": _rounded(costs.base[setting][0]),
                "layer_s": _rounded(costs.base[setting][1]),
                "extra_s": {f"{k}.{p}": _rounded(s) for (k, p), s in costs.extra[setting].items()},
            }
            for setting in costs.settings
        ],
    }


def _from_json(entry: Mapping[str, Any]) -> Costs:
    base, extra = {}, {}
    for part in entry["settings"]:
        setting = Setting(FloatType(part["float_type"]), int(part["group"]))
        base[setting] = (part["fixed_s"], part["layer_s"])
        keys = {tuple(name.split(".")): seconds for name, seconds in part["extra_s"].items()}
        extra[setting] = {(Kind(kind), Precision(precision)): seconds for (kind, precision), seconds in keys.items()}
    return Costs(
        engine=EngineName(entry["engine"]),
        processor=entry["processor"],
        multipliers=entry["multipliers"],
        hidden_size=int(entry["hidden_size"]),
        ffn_size=int(entry["ffn_size"]),
        base=base,
        extra=extra,
        is_one_token=bool(entry.get("is_one_token", False)),
    )


def _rounded(seconds: Seconds) -> dict[str, float]:
    return {shape: float(f"{value:.4g}") for shape, value in seconds.items()}
