"""Scenarios and targets: what contenders are asked for and what is to come of it, read from TOML."""

import random
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from m3_bench.documents import Scenario
from m3_export.plan.costs import SHAPES
from m3_runtime.cpu import CpuInfo
from m3_runtime.engines.select import AUTO
from m3_runtime.errors import BundleFormatError, InputError
from m3_runtime.records import OPTIONAL, from_json

T = TypeVar("T")
ALL_HEADS = ("dense", "sparse", "colbert")
SCORE = "score"
"""The head of a reranker, whose texts are pairs."""
ENCODER = "encoder"
"""What scenarios call the encoder beside a reranker."""
NAMES = ("standard", "long", "quick", "gpu", "peers", "targets", "regret", "reranker")
NO_TIMES = "none"
_RANGES = {"texts": 10_000, "calls": 10_000, "clients": 256, "processes": 64}  # from 1 to these
_SHORTEST, _LONGEST = 3, 8192


class Measure(StrEnum):
    """What a target is about. All but memory compare a contender with others."""

    SPEED = "speed"
    """Ratio of the speeds of the median call."""
    THROUGHPUT = "throughput"
    """Ratio of the work of all calls of a round by its time."""
    CEILING_SHARE = "ceiling-share"
    """Share of the fastest int8 product."""
    REGRET = "regret"
    """Time of a plan ÷ time of the fastest known plan that holds the budget."""
    PEAK_BYTES = "peak-bytes"
    RESIDENT_BYTES = "resident-bytes"

    @property
    def is_memory(self) -> bool:
        """The figure is bytes."""
        return self in (Measure.PEAK_BYTES, Measure.RESIDENT_BYTES)

    @property
    def is_at_most(self) -> bool:
        """Less is better."""
        return self.is_memory or self is Measure.REGRET


class ProcessorClass(StrEnum):
    """Processors with different limits."""

    AVX2 = "avx2"
    """No int8 dot product."""
    VNNI = "vnni"
    WIDE_VNNI = "wide-vnni"
    """512 bits are one operation."""

    @classmethod
    def of(cls, cpu: CpuInfo) -> "ProcessorClass":
        """A processor's. AVX512-VNNI came with AVX-VNNI only where 512 bits are one operation (Zen 5, not Zen 4)."""
        if {"avx512_vnni", "avx_vnni"} <= cpu.flags:
            return cls.WIDE_VNNI
        return cls.VNNI if cpu.has_int8_dot else cls.AVX2


@dataclass(frozen=True)
class Target:
    """A figure to reach: at least, or at most (regret, and memory in bytes).

    `small_limits` are for small models, where a call costs more than its products; empty if no different.
    """

    name: str  # for `--targets`; several targets of one name are chosen together
    title: str  # for tables
    measure: Measure
    scenarios: tuple[str, ...]  # one; for regret several, whose names are the planner's shapes
    limits: Mapping[str, float]  # by class of processor, avx2 at least; a missing one is as the one before
    contender: str = field(default="", metadata=OPTIONAL)  # whose figure it is
    against: tuple[str, ...] = field(default=(), metadata=OPTIONAL)  # the first counts; of ceilings the fastest
    against_scenario: str = field(default="", metadata=OPTIONAL)  # where it is another one of the group
    small_limits: Mapping[str, float] = field(default_factory=dict, metadata=OPTIONAL)

    def limit(self, processor: ProcessorClass, *, is_small_model: bool) -> float:
        """What is asked for on a processor."""
        limits = self.small_limits if is_small_model and self.small_limits else self.limits
        classes = list(ProcessorClass)
        return next(limits[c] for c in reversed(classes[: classes.index(processor) + 1]) if c in limits)

    def is_met_by(self, figure: float, limit: float) -> bool:
        """Whether a figure reaches a limit."""
        return figure <= limit if self.measure.is_at_most else figure >= limit


@dataclass(frozen=True)
class Plan:
    """What files ask for."""

    scenarios: tuple[Scenario, ...]
    targets: tuple[Target, ...]

    @property
    def names(self) -> set[str]:
        """Those of the scenarios."""
        return {one.name for one in self.scenarios}

    def only(self, names: Sequence[str]) -> "Plan":
        """The targets of these names and the scenarios that they need; everything if there are none.

        Raises:
            InputError: there is no such target.
        """
        known = {target.name: None for target in self.targets}
        if unknown := sorted(set(names) - known.keys()):
            raise InputError(f"--targets: there is no target {unknown[0]!r}; targets are {', '.join(known) or 'none'}")
        if not names:
            return self
        chosen = Plan(self.scenarios, tuple(target for target in self.targets if target.name in names))
        return replace(chosen, scenarios=tuple(one for one in self.scenarios if one.name in chosen._needed))

    def within(self, max_tokens: int) -> "Plan":
        """What a model can take: scenarios of targets with texts cut to its length, and others whose texts fit."""
        found = []
        for one in self.scenarios:
            if one.name in self._needed or max(one.lengths) <= max_tokens:
                found.append(replace(one, lengths=tuple(min(length, max_tokens) for length in one.lengths)))
        return replace(self, scenarios=tuple(found))

    def for_heads(self, own: Collection[str], of_encoder: Collection[str] = ()) -> "Plan":
        """Without scenarios that nobody can be asked for, and without targets about what everybody is asked for there.

        Args:
            own: heads of all contenders but `ENCODER`.
            of_encoder: of the encoder beside a reranker.
        """
        only, anybody = (ENCODER,), {one.name for one in self.scenarios if not one.contenders}
        foreign = {one.name for one in self.scenarios if one.contenders == only or not {*own} & {*one.heads}}
        encoders = [one for one in self.scenarios if {*of_encoder} & {*one.heads}]
        nobodys = foreign - {one.name for one in encoders if ENCODER in (one.contenders or only)}

        def is_lost(one: Target) -> bool:
            missing = nobodys if one.contender == ENCODER else foreign
            return bool(anybody & (missing & {*one.scenarios} | nobodys & {one.against_scenario}))

        return Plan(
            tuple(one for one in self.scenarios if one.name not in nobodys),
            tuple(one for one in self.targets if not is_lost(one)),
        )

    def with_auto(self, variant: str) -> "Plan":
        """The same, with a variant's name for "auto"."""

        def named(name: str) -> str:
            return variant if name == AUTO else name

        scenarios = (replace(one, contenders=tuple(map(named, one.contenders))) for one in self.scenarios)
        targets = (
            replace(one, contender=named(one.contender), against=tuple(map(named, one.against))) for one in self.targets
        )
        return Plan(tuple(scenarios), tuple(targets))

    @property
    def _needed(self) -> set[str]:
        """Names of the scenarios that targets are about."""
        return {name for target in self.targets for name in (*target.scenarios, target.against_scenario)}


def read_plan(words: Sequence[str]) -> Plan:
    """Scenarios and targets of TOML files, or of those of `NAMES`, which come with the package; or NO_TIMES alone.

    Raises:
        InputError: a file cannot be read, or a scenario or target is not what it must be; it is named.
    """
    if list(words) == [NO_TIMES]:
        return Plan((), ())
    if not words or NO_TIMES in words:
        raise InputError(f"scenarios: expected some of {', '.join(NAMES)} and TOML files, or {NO_TIMES} alone")
    scenarios: list[Scenario] = []
    targets: list[Target] = []
    for word in words:
        try:
            found = tomllib.loads(_text(word))
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"scenarios {word!r}: not TOML ({error})") from error
        if not found.get("scenario"):
            raise InputError(f"scenarios {word!r}: there is none; expected tables [[scenario]]")
        scenarios += _parsed(found, "scenario", word, _scenario)
        targets += _parsed(found, "target", word, _target)
    names = [scenario.name for scenario in scenarios]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"names of scenarios must be unique, and {sorted(twice)[0]!r} is there twice")
    for target in targets:
        if missing := {*target.scenarios, *filter(None, [target.against_scenario])} - set(names):
            raise InputError(f"target {target.name!r} is about the scenario {sorted(missing)[0]!r}, which is not there")
    return Plan(tuple(scenarios), tuple(targets))


def scenarios_in(word: str) -> set[str]:
    """Names of the scenarios of one of the words that `read_plan` has read."""
    return {table["name"] for table in tomllib.loads(_text(word))["scenario"]}


def mixed_lengths(texts: int, shortest: int, longest: int, seed: int = 0) -> tuple[int, ...]:
    """Seeded lengths, every one from shortest to longest as likely."""
    rng = random.Random(seed)  # noqa: S311 - noise, no secret
    return tuple(rng.randint(shortest, longest) for _ in range(texts))


def _text(word: str) -> str:
    if word in NAMES:
        return resources.files(__package__).joinpath(f"{word}.toml").read_text(encoding="utf-8")
    try:
        return Path(word).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"scenarios {word!r}: {error}; expected a TOML file, or one of {', '.join(NAMES)}") from error


def _parsed(found: Mapping[str, Any], key: str, file: str, parse: Callable[[dict[str, Any], str], T]) -> list[T]:
    """The tables of a key, each of which is named in errors by its number."""
    tables = found.get(key, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InputError(f"scenarios {file!r}: expected tables [[{key}]], got {tables!r}")
    try:
        return [parse(table, f"{key}s {file!r}, number {number}") for number, table in enumerate(tables, 1)]
    except BundleFormatError as error:
        raise InputError(str(error)) from error


def _scenario(table: dict[str, Any], where: str) -> Scenario:
    """A table with `tokens` for texts of one length, or `shortest` and `longest` for seeded lengths, each as likely."""
    for key, most in _RANGES.items():
        _number(table, key, 1, most, where, default=1)
    texts = table.get("texts", 1)
    if "tokens" in table:
        if {"shortest", "longest"} & table.keys():
            raise InputError(f"{where}: give either tokens, or shortest and longest")
        lengths = (_number(table, "tokens", _SHORTEST, _LONGEST, where),) * texts
    else:
        shortest = _number(table, "shortest", _SHORTEST, _LONGEST, where)
        lengths = mixed_lengths(texts, shortest, _number(table, "longest", shortest, _LONGEST, where))
    defaults: dict[str, Any] = {"title": table.get("name"), "heads": list(ALL_HEADS), "calls": 1, "clients": 1}
    rest = {key: value for key, value in table.items() if key not in ("texts", "tokens", "shortest", "longest")}
    scenario = from_json(Scenario, defaults | rest | {"lengths": list(lengths)}, where)
    if not scenario.name or not (scenario.heads == (SCORE,) or {*scenario.heads} <= {*ALL_HEADS}) or not scenario.heads:
        raise InputError(
            f"{where}: a scenario has a name, and heads are some of {', '.join(ALL_HEADS)}, or {SCORE} of a reranker"
        )
    return replace(scenario, heads=tuple(head for head in (*ALL_HEADS, SCORE) if head in scenario.heads))


def _number(table: Mapping[str, Any], key: str, least: int, most: int, where: str, default: int | None = None) -> int:
    value = table.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InputError(f"{where}: {key} must be a whole number from {least} to {most}, got {value!r}")
    return value


def _target(table: dict[str, Any], where: str) -> Target:
    target = from_json(Target, {"title": table.get("name"), **table}, where)
    known = {one.value for one in ProcessorClass}
    for limits in (target.limits, target.small_limits):
        if not limits.keys() <= known or (limits and ProcessorClass.AVX2 not in limits):
            raise InputError(
                f"{where}: limits are of avx2 and others of {', '.join(sorted(known))}, got {dict(limits)}"
            )
    if not target.limits or not target.scenarios:
        raise InputError(f"{where}: a target has scenarios and limits")
    if target.measure is Measure.REGRET and len(target.scenarios) != len(SHAPES):
        shapes = ", ".join(f"{one.texts} × {one.tokens}" for one in SHAPES)
        raise InputError(f"{where}: regret has a scenario for each of the planner's shapes, in their order ({shapes})")
    return target
