"""A reference and runs to a comparison; what does not belong together is refused."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from m3_bench import documents
from m3_bench.documents import Compared, Comparison, Contender, Model, Prices, Run, Scenario, SourceFile, TextParity
from m3_bench.errors import DocumentError
from m3_bench.figures import PlacedRun
from m3_bench.machine import described, differences
from m3_bench.recording import Recording, digest_of, read_outputs, read_recording
from m3_export.verify.comparison import DIGITS
from m3_export.verify.parity import Outputs
from m3_runtime.bundle.reader import sha256_of
from m3_runtime.io.progress import Progress

_BUSY_SHARE = 0.5
"""Load before a run ÷ logical CPUs from which it is mentioned."""


def compare(reference: Path, runs: Sequence[Path], prices: Prices, progress: Progress) -> Comparison:
    """Read everything, check that it belongs together, and measure parity.

    Raises:
        DocumentError: a file cannot be read, or is of another checkpoint, machine or other texts than the others.
    """
    recording = read_recording(reference)
    if digest_of(recording.texts) != recording.run.texts_sha256:
        raise DocumentError(
            f"{str(reference)!r} does not hold the texts of its digest; the file was changed: record it again"
        )
    files = {path: documents.read_as(Run, path) for path in dict.fromkeys(runs)}
    placed = (PlacedRun(run, str(path)) for path, run in files.items())
    check_together([PlacedRun(recording.run, str(reference), is_reference=True), *placed])
    parity: list[Compared] = []
    notes = list(_notes_on_runs(recording.run, files))
    for number, (path, run) in enumerate(files.items()):
        for contender in progress.bar(run.contenders, f"Parity of {path.name}", "contender"):
            name = f"{contender.name} in {path.name}"
            outputs = _outputs_of(contender, path, run, recording)
            if outputs is None:
                notes.append(f"{name} kept no vectors: no parity.")
                continue
            _check_shapes(recording.outputs, outputs, f"{contender.name} ({str(path)!r})")
            parity.append(_compared(number, contender.name, recording.outputs, outputs))
            notes += _notes_on_heads(recording.outputs, outputs, name)
    return Comparison(
        reference=recording.run,
        runs=tuple(files.values()),
        sources=tuple(SourceFile(path.name, sha256_of(path)) for path in (reference, *files)),
        parity=tuple(parity),
        prices=prices,
        notes=tuple(dict.fromkeys(notes)),
    )


def check_together(runs: Sequence[PlacedRun]) -> None:
    """Refuse runs whose figures do not compare.

    Raises:
        DocumentError: one is of another checkpoint than the first, of another machine than the first that is no
            reference, or means something else by a scenario's name.
    """
    seen: dict[str, tuple[Scenario, str]] = {}
    here = next((one for one in runs if not one.is_reference), None)
    for one in runs:
        first, run = runs[0], one.run
        if first.run.model.space_id != run.model.space_id or first.run.model.weights_sha256 != run.model.weights_sha256:
            raise DocumentError(
                f"{one.source!r} is of another checkpoint than {first.source!r}: {_known(run.model)}, not "
                f"{_known(first.run.model)}. Their figures do not compare; record a reference of the same checkpoint, "
                "and make a report of each"
            )
        if here and not one.is_reference and (different := differences(here.run.machine, run.machine)):
            raise DocumentError(
                f"{here.source!r} and {one.source!r} are of different machines: {'; '.join(different)}. Their times do "
                "not compare; run both on one machine, or make a comparison and a report of each"
            )
        for scenario in run.scenarios:
            other, its_file = seen.setdefault(scenario.name, (scenario, one.source))
            if replace(scenario, calls=other.calls, title=other.title) != other:
                raise DocumentError(
                    f"scenario {scenario.name!r} is {_shape(other)} in {its_file!r} but {_shape(scenario)} in "
                    f"{one.source!r}; measure both with the same scenarios, or compare them apart"
                )


def _known(model: Model) -> str:
    return f"{model.name} (vector space {model.space_id[:16]!r}, weights {model.weights_sha256[:16]!r})"


def _shape(scenario: Scenario) -> str:
    texts, clients = len(scenario.lengths), scenario.clients
    lengths = f"{texts} text{'s' * (texts > 1)} of {scenario.tokens} tokens{' in all' * (texts > 1)}"
    return f"{lengths}, {'+'.join(scenario.heads)}, {clients} caller{'s' * (clients > 1)}"


def _notes_on_runs(reference: Run, files: Mapping[Path, Run]) -> Iterator[str]:
    if len({run.threads for run in files.values()}) > 1:
        threads = ", ".join(f"{path.name} {run.threads}" for path, run in files.items())
        yield f"Runs had different numbers of threads: {threads}."
    if not reference.machine.accelerator and any(differences(reference.machine, run.machine) for run in files.values()):
        yield f"The reference is of another machine ({described(reference.machine)}): its times are of that one."
    for path, run in files.items():
        load, cpus = run.machine.load_before, run.machine.logical_cpus
        if load > _BUSY_SHARE * cpus:
            yield (
                f"{path.name}: the machine was busy before the run (load {load:.1f} on {cpus} logical CPUs); times may "
                "be too long."
            )


def _outputs_of(contender: Contender, file: Path, run: Run, recording: Recording) -> Outputs | None:
    """The vectors that a contender kept beside its run; None if it kept none."""
    if contender.outputs is None:
        return None
    if run.texts_sha256 != recording.run.texts_sha256:
        raise DocumentError(
            f"{str(file)!r} kept vectors of different texts (digest {run.texts_sha256[:16] or 'none'!r}) than the "
            f"reference ({recording.run.texts_sha256[:16]!r}, {len(recording.texts)} texts); run it again with the "
            "reference's texts"
        )
    path = file.parent / contender.outputs.path
    if not path.is_file():
        raise DocumentError(
            f"{str(path)!r} is missing: {str(file)!r} keeps vectors there; copy it beside the run, or run again"
        )
    if (got := sha256_of(path)) != contender.outputs.sha256:
        raise DocumentError(
            f"{str(path)!r} is not what {str(file)!r} wrote: SHA-256 {got[:16]}…, expected "
            f"{contender.outputs.sha256[:16]}…; copy both files of one run, or run again"
        )
    return read_outputs(path)


def _notes_on_heads(reference: Outputs, outputs: Outputs, name: str) -> Iterator[str]:
    for head, ours, theirs in (
        ("sparse", reference.lexical, outputs.lexical),
        ("colbert", reference.colbert, outputs.colbert),
    ):
        if ours is None and theirs is None:
            yield f"The reference and {name} have no {head} vectors: left out."
        elif ours is None or theirs is None:
            yield f"{'The reference' if ours is None else name} has no {head} vectors: left out."


def _check_shapes(reference: Outputs, outputs: Outputs, where: str) -> None:
    """Refuse vectors that cannot be of the same texts by the same model."""
    expected, got = reference.dense.shape, outputs.dense.shape
    if not expected[0]:
        raise DocumentError("the reference holds no texts; record it again with some")
    if expected[0] != got[0]:
        raise DocumentError(f"{where} has vectors of {got[0]} texts, the reference of {expected[0]}; run it again")
    if expected != got:
        raise DocumentError(f"{where} has dense vectors of {got[1]} numbers, the reference of {expected[1]}")
    for number, (rows, theirs) in enumerate(zip(reference.colbert or (), outputs.colbert or (), strict=False)):
        if rows.shape != theirs.shape:
            raise DocumentError(
                f"{where}: text {number} has ColBERT vectors of shape {theirs.shape}, the reference {rows.shape}; "
                "the tokenizer or its limit differs: run with the reference's checkpoint and length"
            )


def _compared(run: int, contender: str, reference: Outputs, outputs: Outputs) -> Compared:
    losses = reference.losses(outputs, is_degenerate=False)
    counts = np.bincount(losses.text_of_row, minlength=len(losses.dense))
    colbert = np.bincount(losses.text_of_row, losses.colbert, len(counts)) / np.maximum(counts, 1)
    kept = (losses.dense, losses.sparse, colbert if losses.colbert.size else losses.colbert)
    return Compared(
        run=run,
        contender=contender,
        **reference.parity(outputs),
        texts=TextParity(*(tuple((1 - values).round(DIGITS).tolist()) for values in kept)),
    )
