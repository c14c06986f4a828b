"""A whole run: what was given is checked, then row after row is measured, reported and kept."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from m3_bench.bars import table as report
from m3_bench.bars.contenders import NEEDS_CHECKPOINT, NEEDS_STRICT, Setup, lite_build_facts
from m3_bench.bars.measure import measure_row
from m3_bench.bars.rows import Contender, Row
from m3_bench.bars.stats import flop_per_token
from m3_bench.bars.table import Outcome, Report, RowReport
from m3_bench.errors import NotApplicableError
from m3_bench.machine import this_machine
from m3_bench.peers import PeerSource
from m3_bench.texts import TextMaker
from m3_export.progress import Progress
from m3_runtime import Bundle
from m3_runtime.bundle import sha256_of
from m3_runtime.errors import InputError, M3Error
from m3_runtime.manifest import SourceInfo
from m3_runtime.tokenizer import M3Tokenizer

_DIGEST_LIMIT_BYTES = 2**25  # larger files are compared by size: the weights are in the bundle's digest anyway


@dataclass(frozen=True)
class Wish:
    """The command line, parsed."""

    balanced: Path
    strict: Path | None
    checkpoint: Path | None
    rows: tuple[Row, ...]
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
    texts = _text_maker(setup.balanced)
    found = _empty_report(setup)
    _print(f"{found.machine.cpu}, {found.threads} threads; {found.models['balanced']}\n\n{report.HEADER}")
    for row in wish.rows:
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
    _check_given(wish)
    balanced = Bundle.open(wish.balanced)
    strict = None if wish.strict is None else Bundle.open(wish.strict)
    if strict is not None and strict.manifest.space_id != balanced.manifest.space_id:
        raise InputError(
            f"{str(wish.strict)!r} is of other weights than {str(wish.balanced)!r}; export both from one checkpoint"
        )
    if wish.checkpoint is not None:
        check_source(wish.checkpoint, balanced.manifest.source)
    return Setup(
        balanced=balanced,
        strict=strict,
        checkpoint=wish.checkpoint,
        work=wish.work / "bars",
        peers=PeerSource(wish.work / "peers", wish.torch),
        threads=wish.threads,
        is_quick=wish.is_quick,
        progress=Progress(quiet=False),
    )


def _check_given(wish: Wish) -> None:
    """Before minutes are spent: is everything there that the rows need?"""
    if wish.strict is None and (names := _needing(wish.rows, NEEDS_STRICT)):
        raise InputError(
            f"{names} needs --strict BUNDLE; make one with: m3-export CHECKPOINT OUT --budget strict (or choose others "
            "with --rows)"
        )
    if wish.checkpoint is None and (names := _needing(wish.rows, NEEDS_CHECKPOINT)):
        raise InputError(
            f"{names} needs --checkpoint DIR, the source of the bundles; write it with: m3-export synthetic-xlmr-large "
            "DIR --checkpoint-only (or choose other rows with --rows)"
        )


def _needing(rows: Sequence[Row], contenders: frozenset[Contender]) -> str:
    names = [row.name for row in rows if any(side.contender in contenders for side in row.sides)]
    return f"row {', '.join(names)}" if names else ""


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
    geometry = setup.balanced.manifest.geometry
    bundles = {"balanced": setup.balanced, "strict": setup.strict}
    return Report(
        machine=this_machine(),
        threads=setup.threads,
        flop_per_token=flop_per_token(geometry.layers, geometry.hidden_size, geometry.ffn_size),
        models={role: _in_words(bundle) for role, bundle in bundles.items() if bundle is not None},
    )


def _in_words(bundle: Bundle) -> str:
    manifest = bundle.manifest
    return f"{manifest.source.name}, {manifest.space_id}, budget {manifest.recipe.get('budget', 'unknown')}"


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
