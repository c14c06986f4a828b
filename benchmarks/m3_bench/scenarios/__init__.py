"""Scenarios: what contenders are asked for, read from TOML. Three files come with the package, by name."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from m3_bench.bars.rows import ALL_HEADS, mixed_lengths
from m3_bench.documents import Scenario
from m3_runtime.errors import InputError

NAMES = ("standard", "long", "quick")
_KEYS = {"name", "title", "texts", "tokens", "shortest", "longest", "heads", "calls", "clients"}
MAX_TEXTS, MAX_CALLS, MAX_CLIENTS = 10_000, 10_000, 256


def read_scenarios(words: Sequence[str]) -> tuple[Scenario, ...]:
    """Scenarios of files, or of those that come with the package.

    Args:
        words: each a name ("standard", "long", "quick") or the path of a TOML file.

    Raises:
        InputError: a file cannot be read, or a scenario is not what it must be; it is named.
    """
    found: list[Scenario] = []
    for word in words:
        found += _of_text(_text(word), word)
    names = [scenario.name for scenario in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"scenarios are told apart by name, and {sorted(twice)[0]!r} is there twice")
    return tuple(found)


def within(scenarios: Sequence[Scenario], max_tokens: int) -> tuple[Scenario, ...]:
    """Those scenarios whose texts a model takes whole; the others would measure something else."""
    return tuple(scenario for scenario in scenarios if max(scenario.lengths) <= max_tokens)


def _text(word: str) -> str:
    if word in NAMES:
        return resources.files(__package__).joinpath(f"{word}.toml").read_text(encoding="utf-8")
    try:
        return Path(word).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"scenarios {word!r}: {error}; expected a TOML file, or one of {', '.join(NAMES)}") from error


def _of_text(text: str, where: str) -> list[Scenario]:
    try:
        tables = tomllib.loads(text).get("scenario", [])
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"scenarios {where!r}: not TOML ({error})") from error
    if not isinstance(tables, list) or not tables:
        raise InputError(f"scenarios {where!r}: there is none; expected tables [[scenario]]")
    return [_scenario(_Table(table, f"scenarios {where!r}, number {number}")) for number, table in enumerate(tables, 1)]


@dataclass(frozen=True)
class _Table:
    """One [[scenario]], read key by key."""

    values: Mapping[str, Any]
    where: str

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{self.where}: {key} must be a text, got {value!r}")
        return value

    def number(self, key: str, default: int | None, least: int, most: int) -> int:
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise InputError(f"{self.where}: {key} must be a whole number from {least} to {most}, got {value!r}")
        return value

    def heads(self) -> tuple[str, ...]:
        value = self.values.get("heads", list(ALL_HEADS))
        if not isinstance(value, list) or not value or not set(value) <= set(ALL_HEADS):
            raise InputError(f"{self.where}: heads must be some of {', '.join(ALL_HEADS)}, got {value!r}")
        return tuple(head for head in ALL_HEADS if head in value)


def _scenario(table: _Table) -> Scenario:
    if not isinstance(table.values, dict):
        raise InputError(f"{table.where}: expected a table, got {table.values!r}")
    if unknown := sorted(table.values.keys() - _KEYS):
        raise InputError(f"{table.where}: unknown key {unknown[0]!r}; keys are {', '.join(sorted(_KEYS))}")
    name = table.text("name")
    return Scenario(
        name=name,
        title=table.text("title", name),
        lengths=_lengths(table),
        heads=table.heads(),
        calls=table.number("calls", 1, 1, MAX_CALLS),
        clients=table.number("clients", 1, 1, MAX_CLIENTS),
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
