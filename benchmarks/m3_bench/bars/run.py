"""A whole run: what was given is checked, then row after row is measured, reported and kept."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from m3_bench.bars import table as report
from m3_bench.bars.contenders import NEEDS_CHECKPOINT, Setup, lite_build_facts
from m3_bench.bars.measure import measure_row
from m3_bench.bars.rows import Planned, Row, column_of, regret_row, rows_for
from m3_bench.bars.stats import flop_per_token
from m3_bench.bars.table import Outcome, Report, RowReport
from m3_bench.errors import NotApplicableError
from m3_bench.machine import this_machine
from m3_bench.peers import PeerSource
from m3_bench.texts import TextMaker
from m3_export.progress import Progress
from m3_runtime import Bundle
from m3_runtime.bundle.manifest import SourceInfo
from m3_runtime.bundle.reader import sha256_of
from m3_runtime.cpu import cpu_info
from m3_runtime.errors import InputError, M3Error
from m3_runtime.tokenizer import M3Tokenizer

_FULL_SIZE = 1024  # hidden values of BGE-M3
_DIGEST_LIMIT_BYTES = 2**25  # larger files are compared by size: the weights are in the bundle's digest anyway


@dataclass(frozen=True)
class Wish:
    """The command line, parsed."""

    bundle: Path
    known: tuple[Path, ...]
    checkpoint: Path | None
    rows: tuple[str, ...]
    rounds: int
    is_quick: bool
    threads: int
    output: Path
    work: Path
    torch: tuple[str, ...] | None


def run(wish: Wish) -> bool:
    """Measure, print and write everything that was wished for.

    Returns:
        Whether every row was measured or does not apply to this processor.

    Raises:
        InputError: something is missing that a row needs, or bundles and checkpoint are of different weights.
        M3Error: a bundle cannot be opened.
        OSError: the report cannot be written.
    """
    setup = _setup(wish)
    rows = _rows(wish, setup)
    texts = _text_maker(setup.bundle)
    found = _empty_report(setup)
    about = f"{found.machine.cpu} ({found.column}), {found.threads} threads; {found.models[wish.bundle.name]}"
    _print(f"{about}\n\n{report.HEADER}")
    for row in rows:
        found = _measured(row, wish, setup, texts, found)
        _print("\n".join(report.table_lines(found.rows[-1], found.flop_per_token)))
    setup.progress.say(f"Raw values are in {wish.output}")
    return all(row.outcome is not Outcome.FAILED for row in found.rows)


def _measured(row: Row, wish: Wish, setup: Setup, texts: TextMaker, found: Report) -> Report:
    """The report with one row more; what is known is written after every round."""
    rounds = 1 if wish.is_quick else min(wish.rounds, row.rounds)
    done = RowReport(row, Outcome.FAILED, reason="not one round was finished")
    grown = found
    try:
        with setup.progress.step(f"Row {row.name}"):
            for number, row_run in enumerate(measure_row(row, setup, texts, rounds), start=1):
                done = RowReport(row, Outcome.MEASURED, row_run)
                setup.progress.say(f"  round {number} of {rounds}")
                grown = replace(found, rows=(*found.rows, done), peer_build=lite_build_facts(setup))
                report.write(grown, wish.output)
    except NotApplicableError as error:
        done = RowReport(row, Outcome.NOT_APPLICABLE, reason=str(error))
    except M3Error as error:
        setup.progress.say(f"Row {row.name} failed: {error}")
        done = replace(done, outcome=Outcome.FAILED, reason=str(error))  # its finished rounds are kept
    grown = replace(found, rows=(*found.rows, done), peer_build=lite_build_facts(setup))
    report.write(grown, wish.output)
    return grown


def _setup(wish: Wish) -> Setup:
    bundle, known = Bundle.open(wish.bundle), {path.name: Bundle.open(path) for path in wish.known}
    for name, other in known.items():
        if other.manifest.space_id != bundle.manifest.space_id:
            raise InputError(f"{name!r} is of other weights than {str(wish.bundle)!r}; export both from one checkpoint")
    if wish.checkpoint is not None:
        check_source(wish.checkpoint, bundle.manifest.source)
    return Setup(
        bundle=bundle,
        known=known,
        checkpoint=wish.checkpoint,
        work=wish.work / "bars",
        peers=PeerSource(wish.work / "peers", wish.torch),
        threads=wish.threads,
        is_quick=wish.is_quick,
        progress=Progress(quiet=False),
    )


def _rows(wish: Wish, setup: Setup) -> tuple[Row, ...]:
    """The rows that were asked for; before minutes are spent: is everything there that they need?"""
    is_small = setup.bundle.manifest.geometry.hidden_size < _FULL_SIZE
    known = {
        row.name: row for row in (*rows_for(column_of(cpu_info()), is_small_model=is_small), *_regret(wish, setup))
    }
    if unknown := sorted(set(wish.rows) - known.keys()):
        raise InputError(
            f"--rows: there is no row {unknown[0]!r}; rows are {', '.join(known)}, and regret with --plans"
        )
    rows = tuple(row for name, row in known.items() if not wish.rows or name in wish.rows)
    needing = [row.name for row in rows if any(side.contender in NEEDS_CHECKPOINT for side in row.sides)]
    if wish.checkpoint is None and needing:
        raise InputError(
            f"row {', '.join(needing)} needs --checkpoint DIR, the source of the bundles; write it with: m3-export "
            "synthetic-xlmr-large DIR --checkpoint-only (or choose other rows with --rows)"
        )
    return rows


def _regret(wish: Wish, setup: Setup) -> Iterator[Row]:
    """A row for each INT8 variant that other plans were given for."""
    for variant in setup.bundle.manifest.variants:
        known = [
            Planned(name, variant.name)
            for name, bundle in setup.known.items()
            if any(other.name == variant.name for other in bundle.manifest.variants)
        ]
        if known:
            yield regret_row(Planned(wish.bundle.name, variant.name), tuple(known))


def check_source(checkpoint: Path, source: SourceInfo) -> None:
    """Whether a folder has the very files that a bundle was made of.

    Raises:
        InputError: names the first that is missing or another.
    """
    for entry in source.files:
        path = checkpoint / entry.path
        if not path.is_file():
            raise InputError(f"{str(checkpoint)!r} has no {entry.path}, which the bundle was made of ({source.name})")
        is_same = path.stat().st_size == entry.size_bytes and (
            entry.size_bytes > _DIGEST_LIMIT_BYTES or sha256_of(path) == entry.sha256
        )
        if not is_same:
            raise InputError(
                f"{str(path)!r} is not what the bundle was made of ({source.name}); give the bundle's own checkpoint"
            )


def _text_maker(bundle: Bundle) -> TextMaker:
    info = bundle.manifest.tokenizer
    return TextMaker(M3Tokenizer.open(bundle.file(info.path), info))


def _empty_report(setup: Setup) -> Report:
    geometry, bundles = setup.bundle.manifest.geometry, {setup.bundle.folder.name: setup.bundle, **setup.known}
    return Report(
        machine=this_machine(),
        column=column_of(cpu_info()),
        threads=setup.threads,
        flop_per_token=flop_per_token(geometry.layers, geometry.hidden_size, geometry.ffn_size),
        models={name: _in_words(bundle) for name, bundle in bundles.items()},
    )


def _in_words(bundle: Bundle) -> str:
    manifest = bundle.manifest
    return f"{manifest.source.name}, {manifest.space_id}, budget {manifest.recipe.get('budget', 'unknown')}"


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
