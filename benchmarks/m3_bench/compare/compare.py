"""A reference and runs to a comparison; what does not belong together is refused."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from m3_bench import documents
from m3_bench.compare import machines
from m3_bench.compare.parity import compared
from m3_bench.documents import Compared, Comparison, Contender, Model, OutputsFile, Prices, Run, Scenario, SourceFile
from m3_bench.errors import DocumentError
from m3_bench.recording import Recording, digest_of, read_outputs, read_recording
from m3_export.progress import Progress
from m3_export.verify.parity import Outputs
from m3_runtime.bundle.reader import sha256_of

_HEADS = ("dense", "sparse", "colbert")
_BUSY_SHARE = 0.5
"""Load before a run ÷ logical CPUs from which it is mentioned."""


@dataclass(frozen=True)
class RunFile:
    """A run and the file it was read from."""

    path: Path
    run: Run


def compare(
    reference: Path, runs: Sequence[Path], prices: Prices, progress: Progress, *, mixed_machines: bool
) -> Comparison:
    """Read everything, check that it belongs together, and measure parity.

    Raises:
        DocumentError: a file cannot be read, is of another checkpoint or of other texts, or machines are mixed.
    """
    recording = read_recording(reference)
    if digest_of(recording.texts) != recording.run.texts_sha256:
        raise DocumentError(f"{str(reference)!r} holds other texts than it says; it was changed: record it again")
    files = [RunFile(path, documents.read_as(Run, path)) for path in runs]
    for file in files:
        _check_model(recording.run.model, file)
    _check_scenarios([RunFile(reference, recording.run), *files])
    _check_machines(RunFile(reference, recording.run), files, mixed_machines=mixed_machines)
    parity: list[Compared] = []
    notes = [*_notes_of_runs(recording, files), *_load_notes(files)]
    for number, file in enumerate(files):
        for contender in progress.bar(file.run.contenders, f"Parity of {file.path.name}", "contender"):
            found, notes_of_it = _parity_of(recording, number, file, contender)
            parity += found
            notes += notes_of_it
    return Comparison(
        reference=recording.run,
        runs=tuple(file.run for file in files),
        sources=tuple(SourceFile(path.name, sha256_of(path)) for path in (reference, *runs)),
        parity=tuple(parity),
        prices=prices,
        notes=tuple(notes),
    )


def _check_model(expected: Model, file: RunFile) -> None:
    got = file.run.model
    for what, ours, theirs in (
        ("vector space", expected.space_id, got.space_id),
        ("weights", expected.weights_sha256, got.weights_sha256),
    ):
        if ours != theirs:
            raise DocumentError(
                f"{str(file.path)!r} is of another checkpoint: its {what} {theirs[:16]!r} ({got.name}), "
                f"the reference's {ours[:16]!r} ({expected.name}); record a reference of the same checkpoint"
            )


def _check_scenarios(files: Sequence[RunFile]) -> None:
    """One name must mean one scenario; how often it was called may differ."""
    seen: dict[str, tuple[Scenario, Path]] = {}
    for file in files:
        for scenario in file.run.scenarios:
            first, path = seen.setdefault(scenario.name, (scenario, file.path))
            if replace(scenario, calls=first.calls, title=first.title) != first:
                raise DocumentError(
                    f"scenario {scenario.name!r} is {_shape(first)} in {str(path)!r} but {_shape(scenario)} in "
                    f"{str(file.path)!r}; measure both with the same scenarios, or compare them apart"
                )


def _shape(scenario: Scenario) -> str:
    texts, clients = len(scenario.lengths), scenario.clients
    lengths = f"{texts} text{'s' * (texts > 1)} of {scenario.tokens} tokens together"
    return f"{lengths}, {'+'.join(scenario.heads)}, {clients} caller{'s' * (clients > 1)}"


def _check_machines(reference: RunFile, files: Sequence[RunFile], *, mixed_machines: bool) -> None:
    """A reference from an accelerator is of another machine by its nature; anything else must be asked for."""
    timed = [*files] if reference.run.machine.accelerator or not _is_timed(reference.run) else [reference, *files]
    for file in timed[1:]:
        told = machines.differences(timed[0].run.machine, file.run.machine)
        if told and not mixed_machines:
            raise DocumentError(
                f"{str(timed[0].path)!r} and {str(file.path)!r} are of different machines: {'; '.join(told)}. Their "
                "times do not compare; run both on one machine, or pass --mixed-machines to see each with its machine"
            )


def _is_timed(run: Run) -> bool:
    return any(measured.rounds for contender in run.contenders for measured in contender.scenarios)


def _notes_of_runs(recording: Recording, files: Sequence[RunFile]) -> list[str]:
    everywhere = machines.distinct([file.run.machine for file in files])
    notes = []
    if len(everywhere) > 1:
        names = "; ".join(machines.described(machine) for machine in everywhere)
        notes.append(f"Runs are of {len(everywhere)} machines ({names}): each figure says which.")
    threads = {file.run.threads for file in files}
    if len(threads) > 1:
        told = ", ".join(f"{file.path.name} {file.run.threads}" for file in files)
        notes.append(f"Runs had different numbers of threads: {told}.")
    if not _is_timed(recording.run):
        notes.append("The reference was recorded without times: there is no speed or cost of it.")
    return notes


def _load_notes(files: Sequence[RunFile]) -> list[str]:
    return [
        f"{file.path.name}: the machine was busy before the run (load {machine.load_before:.1f} on "
        f"{machine.logical_cpus} logical CPUs); times may be too long."
        for file in files
        if (machine := file.run.machine).load_before > _BUSY_SHARE * machine.logical_cpus
    ]


def _parity_of(
    recording: Recording, number: int, file: RunFile, contender: Contender
) -> tuple[list[Compared], list[str]]:
    """Its parity, or why there is none; and which heads were left out."""
    if contender.outputs is None:
        return [], [f"{contender.name} in {file.path.name} kept no vectors: no parity."]
    if file.run.texts_sha256 != recording.run.texts_sha256:
        raise DocumentError(
            f"{str(file.path)!r} kept vectors of other texts (digest {file.run.texts_sha256[:16] or 'none'!r}) than "
            f"the reference ({recording.run.texts_sha256[:16]!r}, {len(recording.texts)} texts); run it again with "
            "the reference's texts"
        )
    path = _checked(file.path.parent / contender.outputs.path, contender.outputs, file)
    outputs = read_outputs(path)
    found = compared(number, contender.name, recording.outputs, outputs, f"{contender.name} ({str(path)!r})")
    notes = [
        f"{' and '.join(lacking)} {'have' if len(lacking) > 1 else 'has'} no {head} vectors: left out."
        for head in _HEADS
        if (lacking := _lacking(head, recording.outputs, outputs, f"{contender.name} in {file.path.name}"))
    ]
    return [found], notes


def _lacking(head: str, reference: Outputs, outputs: Outputs, name: str) -> list[str]:
    sides = (("The reference", reference), (name, outputs))
    return [side for side, vectors in sides if head not in _heads(vectors)]


def _heads(outputs: Outputs) -> set[str]:
    kept = {"dense"}
    kept |= {"sparse"} if outputs.lexical is not None else set()
    return kept | ({"colbert"} if outputs.colbert is not None else set())


def _checked(path: Path, expected: OutputsFile, file: RunFile) -> Path:
    if not path.is_file():
        raise DocumentError(
            f"{str(path)!r} is missing: {str(file.path)!r} keeps vectors there; copy it beside the run, or run again"
        )
    if (got := sha256_of(path)) != expected.sha256:
        raise DocumentError(
            f"{str(path)!r} is not what {str(file.path)!r} wrote: SHA-256 {got[:16]}…, expected "
            f"{expected.sha256[:16]}…; copy both files of one run, or run again"
        )
    return path
