"""A whole run: what is finished is written after every scenario, and is not measured again when the run is resumed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from m3_bench import documents
from m3_bench.documents import Contender, Model, Run, Scenario, ScenarioRun
from m3_bench.errors import BenchError, DocumentError
from m3_bench.machine import this_machine
from m3_bench.run.candidates import Candidate
from m3_bench.run.outputs import keep_outputs
from m3_bench.run.table import best_tokens_per_s
from m3_bench.run.turns import is_able, measure_scenario
from m3_bench.texts import TextMaker
from m3_export.progress import Progress
from m3_runtime.errors import InputError


@dataclass(frozen=True)
class Wish:
    """What is to be run.

    Attributes:
        model: what all candidates are made of.
        candidates: who.
        scenarios: what each is asked for.
        texts: whose vectors are kept, and their digest.
        texts_sha256: see `m3_export.calibration.texts.digest`.
        rounds: turns of each in each scenario.
        threads: of each.
        cpus: logical CPUs that the processes are held to.
        output: the document.
    """

    model: Model
    candidates: tuple[Candidate, ...]
    scenarios: tuple[Scenario, ...]
    texts: tuple[str, ...]
    texts_sha256: str
    rounds: int
    threads: int
    cpus: tuple[int, ...]
    output: Path


def run(wish: Wish, maker: TextMaker, progress: Progress) -> Run:
    """Measure what is not measured yet.

    Raises:
        InputError: the output is of another run.
        DocumentError: the output cannot be read or written.
    """
    done = _begin(wish)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, wish.cpus)  # which processes of ours inherit
    for candidate in wish.candidates:
        contender = _named(done, candidate.name)
        if contender.outputs is None and wish.texts:
            with progress.step(f"{candidate.name}: vectors of {len(wish.texts)} texts"):
                done = _with(done, _keeping(candidate, contender, wish, progress))
                documents.write(done, wish.output)
    for number, scenario in enumerate(wish.scenarios, 1):
        if _is_finished(done, scenario, wish.candidates):
            progress.say(f"{scenario.name}: finished before")
            continue
        with progress.step(f"Scenario {number} of {len(wish.scenarios)}, {scenario.name}: {scenario.title}"):
            found = measure_scenario(scenario, wish.candidates, maker, wish.rounds, wish.threads)
        done = _with_scenario(done, found)
        documents.write(done, wish.output)
        for name, one in found.items():
            progress.say(f"  {name}: {_in_words(one, scenario)}")
    return done


def _begin(wish: Wish) -> Run:
    fresh = Run(
        machine=this_machine(),
        model=wish.model,
        threads=wish.threads,
        cpus=wish.cpus,
        texts_sha256=wish.texts_sha256,
        scenarios=wish.scenarios,
        contenders=tuple(map(_unmeasured, wish.candidates)),
    )
    if not wish.output.exists():
        documents.write(fresh, wish.output)
        return fresh
    before = documents.read_as(Run, wish.output)
    if difference := _difference(before, fresh):
        raise InputError(
            f"{str(wish.output)!r} is of another run ({difference}); choose another -o, or delete it to begin anew"
        )
    return before


def _unmeasured(candidate: Candidate) -> Contender:
    return Contender(
        name=candidate.name,
        is_ours=candidate.is_ours,
        engine=candidate.engine,
        precision=candidate.precision,
        versions={},
        heads=candidate.heads,
        size_bytes=candidate.size_bytes,
        outputs=None,
        scenarios=(),
    )


def _difference(before: Run, now: Run) -> str:
    """What makes a document one of another run; empty if it can be resumed."""
    pairs = {
        "machine": (before.machine.cpu, now.machine.cpu),
        "weights": (before.model, now.model),
        "threads": (before.threads, now.threads),
        "CPUs": (before.cpus, now.cpus),
        "texts": (before.texts_sha256, now.texts_sha256),
        "scenarios": (before.scenarios, now.scenarios),
        "contenders": ([one.name for one in before.contenders], [one.name for one in now.contenders]),
    }
    return next((f"other {name}" for name, (then, here) in pairs.items() if then != here), "")


def _keeping(candidate: Candidate, contender: Contender, wish: Wish, progress: Progress) -> Contender:
    try:
        outputs, versions = keep_outputs(candidate, wish.texts, wish.output, wish.threads)
    except DocumentError:
        raise
    except BenchError as error:
        progress.say(f"  {candidate.name} gave no vectors: {error}")
        return contender
    return replace(contender, outputs=outputs, versions=versions)


def _named(done: Run, name: str) -> Contender:
    return next(one for one in done.contenders if one.name == name)


def _with(done: Run, contender: Contender) -> Run:
    others = (contender if one.name == contender.name else one for one in done.contenders)
    return replace(done, contenders=tuple(others))


def _with_scenario(done: Run, found: Mapping[str, ScenarioRun]) -> Run:
    for name, one in found.items():
        contender = _named(done, name)
        done = _with(done, replace(contender, scenarios=(*contender.scenarios, one)))
    return done


def _is_finished(done: Run, scenario: Scenario, candidates: Sequence[Candidate]) -> bool:
    able = [one.name for one in candidates if is_able(one, scenario)]
    return all(any(one.scenario == scenario.name for one in _named(done, name).scenarios) for name in able)


def _in_words(found: ScenarioRun, scenario: Scenario) -> str:
    if found.error:
        return f"failed: {found.error.splitlines()[0]}"
    seconds = [seconds for one in found.rounds for seconds in one.seconds]
    speed = best_tokens_per_s(found, scenario)
    return f"{median(seconds) * 1e3:.1f} ms a call, best {speed:.0f} tokens/s"
