"""Raw values to verdicts, and both to a table and to JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from m3_bench.bars import stats
from m3_bench.bars.measure import RowRun, SideRun
from m3_bench.bars.rows import SHAPE_WEIGHTS, SHAPES, Bar, Column, Measure, Row, Unit
from m3_bench.bars.stats import Figure
from m3_bench.machine import Machine
from m3_runtime.records import to_json

SCHEMA_VERSION = 1
HEADER = "| what | bar | best | median | met | raw, medians |\n|---|---|---|---|---|---|"


class Outcome(StrEnum):
    """What became of a row."""

    MEASURED = "measured"
    NOT_APPLICABLE = "not applicable on this processor"
    FAILED = "failed"


@dataclass(frozen=True)
class Result:
    """A bar and what was measured for it; the median decides whether it is met; a plan over budget meets none."""

    bar: Bar
    figure: Figure
    holds: bool = True

    @property
    def is_met(self) -> bool:
        """Whether the median reaches the bar."""
        return self.holds and self.bar.is_met_by(self.figure.median)


@dataclass(frozen=True)
class RowReport:
    """A row's outcome. `run` is None where no round was finished; `reason` is empty if the row was measured."""

    row: Row
    outcome: Outcome
    run: RowRun | None = None
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """Everything a run found out so far.

    Attributes:
        machine: where.
        column: of the bars, which this machine is held to.
        threads: of every contender.
        flop_per_token: of the model, for the share of the ceiling.
        models: what was measured, in words, by role.
        peer_build: how bge-m3-lite's models were made.
        rows: in the order they were measured.
    """

    machine: Machine
    column: Column
    threads: int
    flop_per_token: float
    models: dict[str, str]
    peer_build: dict[str, Any] = field(default_factory=dict)
    rows: tuple[RowReport, ...] = ()


def results(run: RowRun, flop_per_token: float) -> tuple[Result, ...]:
    """Each of a row's bars with its figure."""
    holds = not _missed(run, run.sides[0])
    return tuple(Result(bar, _figure(bar, run, flop_per_token), holds) for bar in run.row.bars)


def _figure(bar: Bar, run: RowRun, flop_per_token: float) -> Figure:
    ours, *others = (side.turns for side in run.sides)
    match bar.measure:
        case Measure.SPEED:
            return stats.speed_ratio(ours, others[0])
        case Measure.THROUGHPUT:
            return stats.throughput_ratio(ours, others[0])
        case Measure.REGRET:
            known = [side.turns for side in run.sides[1:] if not _missed(run, side)]
            return stats.regret(ours, known, SHAPE_WEIGHTS)
        case Measure.CEILING_SHARE:
            return stats.ceiling_share(ours, others, flop_per_token)
        case Measure.PEAK_BYTES:
            return stats.memory([turn.peak_bytes for turn in ours])
        case Measure.RESIDENT_BYTES:
            return stats.memory([turn.resident_bytes for turn in ours])


def table_lines(row: RowReport, flop_per_token: float) -> list[str]:
    """A row's lines of the table, one for each bar."""
    if row.run is None or row.outcome is not Outcome.MEASURED:
        return [
            f"| {bar.what} | {_limit(bar)} | – | – | {row.outcome} | {_one_line(row.reason)} |" for bar in row.row.bars
        ]
    raw = "; ".join(_raw(side, row.row.unit) + _missed(row.run, side) for side in row.run.sides)
    return [
        f"| {one.bar.what} | {_limit(one.bar)} | {_value(one.bar, one.figure.best)} "
        f"| {_value(one.bar, one.figure.median)} | {'yes' if one.is_met else 'no'} | {raw} |"
        for one in results(row.run, flop_per_token)
    ]


def _limit(bar: Bar) -> str:
    return f"{'≤' if bar.measure.is_at_most else '≥'} {_value(bar, bar.limit)}"


def _value(bar: Bar, value: float) -> str:
    return f"{value / 1e6:.0f} MB" if bar.measure.is_memory else f"{value:.2f}"


def _missed(run: RowRun, side: SideRun) -> str:
    held = run.held_by(side)
    return f" (does not hold: {_one_line('; '.join(held.excesses))})" if held is not None and held.excesses else ""


def _raw(side: SideRun, unit: Unit) -> str:
    name = str(side.side.contender)
    if side.side.workload.lengths == SHAPES.lengths:
        return f"{name} {' · '.join(f'{speed:.0f}' for speed in stats.median_speeds(side.turns))} tokens/s"
    if not any(side.side.workload.lengths):
        return f"{name} {stats.median_speed(side.turns) / 1e12:.3f} TOP/s"
    match unit:
        case Unit.TOKENS_PER_S:
            return f"{name} {stats.median_throughput(side.turns):.0f} tokens/s"
        case Unit.MILLISECONDS:
            return f"{name} {stats.median_seconds(side.turns) * 1e3:.1f} ms"
        case Unit.SECONDS:
            return f"{name} {stats.median_seconds(side.turns):.2f} s"


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")[:300]


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON values, every raw value included."""
    rows = [_row_json(row, report.flop_per_token) for row in report.rows]
    return {
        "schema_version": SCHEMA_VERSION,
        "machine": to_json(report.machine),
        "column": report.column.value,
        "threads": report.threads,
        "flop_per_token": report.flop_per_token,
        "models": report.models,
        "bge_m3_lite_build": report.peer_build,
        "rows": rows,
    }


def _row_json(row: RowReport, flop_per_token: float) -> dict[str, Any]:
    found = results(row.run, flop_per_token) if row.run is not None else ()
    return {
        "name": row.row.name,
        "outcome": row.outcome.value,
        "reason": row.reason,
        "results": [
            {
                "what": one.bar.what,
                "measure": one.bar.measure.value,
                "limit": one.bar.limit,
                "best": one.figure.best,
                "median": one.figure.median,
                "is_met": one.is_met,
            }
            for one in found
        ],
        "sides": [] if row.run is None else [_side_json(row.run, index) for index in range(len(row.run.sides))],
    }


def _side_json(run: RowRun, index: int) -> dict[str, Any]:
    side = run.sides[index]
    return {
        "contender": str(side.side.contender),
        "workload": side.side.workload.name,
        "processes": side.side.processes,
        "threads": side.side.threads,
        "versions": side.versions,
        "dense_cosine_to_the_first_side": run.dense_cosine(index),
        "held": to_json(run.held_by(side)),
        "turns": to_json(side.turns),
    }


def write(report: Report, path: Path) -> None:
    """Write the JSON, whole or not at all.

    Raises:
        OSError: the disk said no.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(as_json(report), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def in_words(rows: Sequence[RowReport], flop_per_token: float) -> str:
    """The whole table."""
    return "\n".join([HEADER, *(line for row in rows for line in table_lines(row, flop_per_token))])
