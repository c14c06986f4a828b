"""A whole run: what is finished is written after every scenario, and is not measured again when the run is resumed."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import groupby
from pathlib import Path
from statistics import median

from m3_bench import documents
from m3_bench.documents import Contender, Model, OutputsFile, Run, Scenario, ScenarioRun
from m3_bench.errors import BenchError
from m3_bench.machine import this_machine
from m3_bench.recording import digest_of, write_outputs
from m3_bench.run.contenders import ContenderSpec
from m3_bench.run.turns import is_asked, measure_group
from m3_bench.texts import TextMaker
from m3_bench.worker_process import WorkerProcess
from m3_export.verify.parity import Outputs
from m3_runtime.bundle.reader import sha256_of
from m3_runtime.errors import InputError
from m3_runtime.io.progress import Progress


@dataclass(frozen=True)
class RunSpec:
    """What is to be run."""

    model: Model
    contenders: tuple[ContenderSpec, ...]
    scenarios: tuple[Scenario, ...]
    texts: tuple[str, ...]  # whose vectors are kept
    rounds: int  # turns of each contender in each scenario
    threads: int  # of each; their processes are pinned to so many logical CPUs
    output: Path


def run(spec: RunSpec, maker: TextMaker, progress: Progress) -> Run:
    """Measure what is not measured yet.

    Raises:
        InputError: the output is of another run.
        DocumentError: the output cannot be read or written.
    """
    opened = _opened(spec)
    with _pinned_to(opened.cpus):
        return _continued(opened, spec, maker, progress)


@contextmanager
def _pinned_to(cpus: Sequence[int]) -> Iterator[None]:
    """Pin this process, and so those that it starts, to some logical CPUs."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _continued(before: Run, spec: RunSpec, maker: TextMaker, progress: Progress) -> Run:
    done = {one.name: one for one in (*before.contenders, *before.products)}

    def written() -> Run:
        """The document with what is done so far."""
        contenders, products = (tuple(done[one.name] for one in ones) for ones in (before.contenders, before.products))
        now = replace(before, contenders=contenders, products=products)
        documents.write(now, spec.output)
        return now

    for contender in spec.contenders:
        if done[contender.name].outputs is None and spec.texts and contender.gives_vectors:
            with progress.step(f"{contender.name}: vectors of {len(spec.texts)} texts"):
                done[contender.name] = _with_outputs(contender, done[contender.name], spec, progress)
                written()
    groups = list(grouped(spec.scenarios))
    for number, group in enumerate(groups, 1):
        title = " and ".join(f"{one.name}: {one.title}" for one in group)
        asked = {(scenario.name, one.name) for scenario in group for one in spec.contenders if is_asked(one, scenario)}
        if asked <= {(each.scenario, one.name) for one in done.values() for each in one.scenarios}:
            progress.say(f"{title}: finished before")
            continue
        with progress.step(f"Scenario {number} of {len(groups)}, {title}"):
            found = measure_group(group, spec.contenders, maker, spec.rounds, spec.threads)
        for (scenario, name), one in found.items():
            others = tuple(old for old in done[name].scenarios if old.scenario != scenario)
            done[name] = replace(done[name], scenarios=(*others, one))
            progress.say(f"  {name}, {scenario}: {_in_words(one)}")
        written()
    return written()


def usable_cpus() -> tuple[int, ...]:
    """Logical CPUs that this process may use."""
    return tuple(sorted(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)))


def grouped(scenarios: Sequence[Scenario]) -> Iterator[tuple[Scenario, ...]]:
    """Neighbours of one group together, every other scenario alone."""
    for _, group in groupby(scenarios, lambda one: one.group or one.name):
        yield tuple(group)


def named(run: Run, name: str) -> Contender:
    """A contender of a run, products among them."""
    return next(one for one in (*run.contenders, *run.products) if one.name == name)


def vectors_of(contender: ContenderSpec, texts: Sequence[str], threads: int) -> tuple[Outputs, dict[str, str]]:
    """A contender's vectors, and the releases of the packages that computed them.

    Raises:
        BenchError: it failed.
    """
    with WorkerProcess.start(contender.name, contender.command, threads) as worker:
        found = worker.vectors(texts, contender.heads)
        return Outputs(found.dense, found.lexical, found.colbert), worker.versions


def slug(name: str) -> str:
    """A name as part of a file's name.

    >>> slug("bge-m3-lite int8")
    'bge-m3-lite-int8'
    """
    return "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in name)


def unmeasured(spec: ContenderSpec) -> Contender:
    """A contender before anything of it is known."""
    return Contender(
        name=spec.name,
        is_ours=spec.is_ours,
        engine=spec.engine,
        precision=spec.precision,
        versions={spec.engine: metadata.version(spec.engine)} if spec.is_product else {},
        heads=spec.heads,
        size_bytes=spec.size_bytes,
        outputs=None,
        scenarios=(),
    )


def _opened(spec: RunSpec) -> Run:
    fresh = Run(
        machine=this_machine(),
        model=spec.model,
        threads=spec.threads,
        cpus=usable_cpus()[: spec.threads],
        texts_sha256=digest_of(spec.texts),
        scenarios=spec.scenarios,
        contenders=tuple(unmeasured(one) for one in spec.contenders if not one.is_product),
        products=tuple(unmeasured(one) for one in spec.contenders if one.is_product),
    )
    if not spec.output.exists():
        documents.write(fresh, spec.output)
        return fresh
    before = documents.read_as(Run, spec.output)
    then, now = _identity(before), _identity(fresh)
    if other := next((name for name in now if then[name] != now[name]), ""):
        raise InputError(
            f"{str(spec.output)!r} belongs to another run (different {other}); choose another -o, or delete it to "
            "start over"
        )
    return before


def _identity(run: Run) -> dict[str, object]:
    """What must be the same where a document is continued."""
    return {
        "machine": run.machine.cpu,
        "weights": run.model,
        "threads": run.threads,
        "CPUs": run.cpus,
        "texts": run.texts_sha256,
        "scenarios": run.scenarios,
        "contenders": [one.name for one in (*run.contenders, *run.products)],
    }


def _with_outputs(contender: ContenderSpec, before: Contender, spec: RunSpec, progress: Progress) -> Contender:
    """The contender with its vectors, which are kept beside the run."""
    try:
        outputs, versions = vectors_of(contender, spec.texts, spec.threads)
    except BenchError as error:
        progress.say(f"  {contender.name} gave no vectors: {error}")
        return before
    path = spec.output.with_name(f"{spec.output.stem}.{slug(contender.name)}.safetensors")
    write_outputs(outputs, path)
    return replace(before, outputs=OutputsFile(path.name, sha256_of(path)), versions=versions)


def _in_words(found: ScenarioRun) -> str:
    if found.error:
        return f"failed: {found.error.splitlines()[0]}"
    return f"{median(seconds for one in found.rounds for seconds in one.seconds) * 1e3:.1f} ms a call"
