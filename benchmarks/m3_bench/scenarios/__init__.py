"""Scenarios and targets: what contenders are asked for and what is to come of it, read from TOML."""

import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any

from m3_bench.documents import Scenario
from m3_runtime.cpu import CpuInfo
from m3_runtime.errors import InputError

ALL_HEADS = ("dense", "sparse", "colbert")
NAMES = ("standard", "long", "quick", "gpu", "peers", "targets", "regret")
MAX_TEXTS, MAX_CALLS, MAX_CLIENTS, MAX_PROCESSES = 10_000, 10_000, 256, 64


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
    """Processors that targets tell apart."""

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

    Attributes:
        name: for `--targets`; several targets of one name are chosen together.
        title: in words, for tables.
        measure: what the figure is.
        scenarios: one; for regret several, whose names are the planner's shapes.
        contender: whose figure it is.
        against: whom it is compared with: the first, or of a ceiling the fastest.
        against_scenario: what `against` does, where it is another scenario of the group.
        limits: by class of processor; what is missing is as the one before.
        small_limits: the same for small models, where a call costs more than its products.
    """

    name: str
    title: str
    measure: Measure
    scenarios: tuple[str, ...]
    contender: str
    against: tuple[str, ...]
    against_scenario: str
    limits: Mapping[ProcessorClass, float]
    small_limits: Mapping[ProcessorClass, float]

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
        targets = tuple(target for target in self.targets if target.name in names)
        wanted = {name for target in targets for name in (*target.scenarios, target.against_scenario)}
        return Plan(tuple(one for one in self.scenarios if one.name in wanted), targets)

    def within(self, max_tokens: int) -> "Plan":
        """What a model can take: scenarios of targets with texts cut to its length, and others whose texts fit."""
        wanted = {name for target in self.targets for name in (*target.scenarios, target.against_scenario)}
        found = []
        for one in self.scenarios:
            if one.name in wanted or max(one.lengths) <= max_tokens:
                found.append(replace(one, lengths=tuple(min(length, max_tokens) for length in one.lengths)))
        return replace(self, scenarios=tuple(found))


def read_plan(words: Sequence[str]) -> Plan:
    """Scenarios and targets of files, or of those that come with the package.

    Args:
        words: each a name of `NAMES` or the path of a TOML file.

    Raises:
        InputError: a file cannot be read, or a scenario or target is not what it must be; it is named.
    """
    scenarios: list[Scenario] = []
    targets: list[Target] = []
    for word in words:
        found = _parsed(_text(word), word)
        tables = _tables(found, "scenario", word)
        if not tables:
            raise InputError(f"scenarios {word!r}: there is none; expected tables [[scenario]]")
        scenarios += map(_scenario, tables)
        targets += map(_target, _tables(found, "target", word))
    names = [scenario.name for scenario in scenarios]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"scenarios are told apart by name, and {sorted(twice)[0]!r} is there twice")
    for target in targets:
        if missing := {*target.scenarios, *filter(None, [target.against_scenario])} - set(names):
            raise InputError(f"target {target.name!r} is about the scenario {sorted(missing)[0]!r}, which is not there")
    return Plan(tuple(scenarios), tuple(targets))


def read_scenarios(words: Sequence[str]) -> tuple[Scenario, ...]:
    """The scenarios of `read_plan`."""
    return read_plan(words).scenarios


def within(scenarios: Sequence[Scenario], max_tokens: int) -> tuple[Scenario, ...]:
    """Those scenarios whose texts a model takes whole; the others would measure something else."""
    return tuple(scenario for scenario in scenarios if max(scenario.lengths) <= max_tokens)


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


def _parsed(text: str, where: str) -> Mapping[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"scenarios {where!r}: not TOML ({error})") from error


def _tables(values: Mapping[str, Any], key: str, where: str) -> "list[_Table]":
    tables = values.get(key, [])
    if not isinstance(tables, list):
        raise InputError(f"scenarios {where!r}: there is none; expected tables [[{key}]]")
    return [_Table(table, f"{key}s {where!r}, number {number}") for number, table in enumerate(tables, 1)]


@dataclass(frozen=True)
class _Table:
    """One [[scenario]] or [[target]], read key by key."""

    values: Mapping[str, Any]
    where: str

    def allow(self, keys: set[str]) -> None:
        if not isinstance(self.values, dict):
            raise InputError(f"{self.where}: expected a table, got {self.values!r}")
        if unknown := sorted(self.values.keys() - keys):
            raise InputError(f"{self.where}: unknown key {unknown[0]!r}; keys are {', '.join(sorted(keys))}")

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str) or not (value.strip() or value == default):
            raise InputError(f"{self.where}: {key} must be a text, got {value!r}")
        return value

    def number(self, key: str, default: int | None, least: int, most: int) -> int:
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise InputError(f"{self.where}: {key} must be a whole number from {least} to {most}, got {value!r}")
        return value

    def flag(self, key: str) -> bool:
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise InputError(f"{self.where}: {key} must be true or false, got {value!r}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise InputError(f"{self.where}: {key} must be a list of texts, got {value!r}")
        return tuple(value)

    def some(self, key: str, of: Sequence[str]) -> tuple[str, ...]:
        value = self.values.get(key, list(of))
        if not isinstance(value, list) or not value or not set(value) <= set(of):
            raise InputError(f"{self.where}: {key} must be some of {', '.join(of)}, got {value!r}")
        return tuple(one for one in of if one in value)

    def limits(self, key: str) -> Mapping[ProcessorClass, float]:
        """One number for all processors, or a table of them."""
        value = self.values.get(key, {})
        by_class = {ProcessorClass.AVX2.value: value} if isinstance(value, int | float) else value
        known = {one.value for one in ProcessorClass}
        if not isinstance(by_class, dict) or not by_class.keys() <= known or (by_class and "avx2" not in by_class):
            raise InputError(f"{self.where}: {key} must be a number, or a table of avx2 and others of {sorted(known)}")
        return {ProcessorClass(name): float(limit) for name, limit in by_class.items()}


def _scenario(table: _Table) -> Scenario:
    table.allow({field.name for field in fields(Scenario)} - {"lengths"} | {"texts", "tokens", "shortest", "longest"})
    name = table.text("name")
    return Scenario(
        name=name,
        title=table.text("title", name),
        lengths=_lengths(table),
        heads=table.some("heads", ALL_HEADS),
        calls=table.number("calls", 1, 1, MAX_CALLS),
        clients=table.number("clients", 1, 1, MAX_CLIENTS),
        contenders=table.texts("contenders"),
        group=table.text("group", ""),
        most_rounds=table.number("most_rounds", 0, 0, MAX_CALLS),
        processes=table.number("processes", 1, 1, MAX_PROCESSES),
        threads=table.number("threads", 0, 0, MAX_PROCESSES),
        by_length=table.flag("by_length"),
        is_start=table.flag("is_start"),
    )


def _lengths(table: _Table) -> tuple[int, ...]:
    """`tokens` for texts of one length, `shortest` and `longest` for seeded lengths, each as likely."""
    texts = table.number("texts", 1, 1, MAX_TEXTS)
    if "tokens" in table.values:
        if {"shortest", "longest"} & table.values.keys():
            raise InputError(f"{table.where}: give either tokens, or shortest and longest")
        return (table.number("tokens", None, 3, 8192),) * texts
    shortest = table.number("shortest", None, 3, 8192)
    return mixed_lengths(texts, shortest, table.number("longest", None, shortest, 8192))


def _target(table: _Table) -> Target:
    table.allow({field.name for field in fields(Target)})
    name, measure = table.text("name"), table.text("measure")
    if measure not in set(Measure):
        raise InputError(f"{table.where}: measure must be one of {', '.join(Measure)}, got {measure!r}")
    target = Target(
        name=name,
        title=table.text("title", name),
        measure=Measure(measure),
        scenarios=table.texts("scenarios"),
        contender=table.text("contender", ""),
        against=table.texts("against"),
        against_scenario=table.text("against_scenario", ""),
        limits=table.limits("limits"),
        small_limits=table.limits("small_limits"),
    )
    if not target.limits or not target.scenarios:
        raise InputError(f"{table.where}: a target has scenarios and limits")
    return target
