"""The engine: contenders as fresh processes, which take turns, round after round, everybody else asleep."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from typing import Protocol

from m3_bench.documents import Round, Scenario, ScenarioRun
from m3_bench.errors import BenchError, WorkerError
from m3_bench.run.contenders import ContenderSpec
from m3_bench.texts import TextMaker
from m3_bench.worker_process import Command, WorkerProcess
from m3_bench.workers.messages import Reply, Request

BETWEEN_S = 0.2  # lets the last contender's threads stop spinning
PRODUCTS_PER_ROUND = 10  # matrix products in a round, where a contender multiplies instead of encoding


@dataclass(frozen=True)
class _Entry:
    """A contender at a scenario."""

    contender: ContenderSpec
    scenario: Scenario
    request: Request
    threads: int

    @property
    def command(self) -> Command:
        """Its program, with the threads of the scenario."""
        command = self.contender.command
        if self.scenario.threads and "threads" in command.options:
            return replace(command, options={**command.options, "threads": self.threads})
        return command

    def start(self) -> AbstractContextManager[WorkerProcess]:
        """Its process."""
        return WorkerProcess.start(self.contender.name, self.command, self.threads)


class _Turns(Protocol):
    """What takes an entry's turns."""

    load_s: float
    first_s: float

    def take(self) -> Round: ...


@dataclass
class _Taken:
    """What came of an entry so far."""

    turns: _Turns | None = None
    rounds: list[Round] = field(default_factory=list)
    error: str = ""


def measure_group(
    group: Sequence[Scenario], contenders: Sequence[ContenderSpec], texts: TextMaker | None, rounds: int, threads: int
) -> Mapping[tuple[str, str], ScenarioRun]:
    """Measure scenarios that belong together with every contender; one that fails says why, and the others go on.

    The first call after loading is kept apart, and one whole round more is not counted. Texts of a call are made for it
    and are the same for all contenders.

    Args:
        group: what is asked for; scenarios of one group take turns too.
        contenders: who is asked, each for those of the heads that it has.
        texts: makes the texts; None where only products are asked for.
        rounds: how often each is asked.
        threads: of each, where the scenario does not say.

    Returns:
        By names of scenario and contender.
    """
    entries = [entry for scenario in group for entry in _entries(scenario, contenders, texts, threads)]
    taken = [_Taken() for _ in entries]
    limits = [one.most_rounds for one in group if one.most_rounds]
    with ExitStack() as stack:
        for entry, one in zip(entries, taken, strict=True):
            try:
                opening: AbstractContextManager[_Turns] = (_Starting if entry.scenario.is_start else _Resident)(entry)
                one.turns = stack.enter_context(opening)
            except BenchError as error:
                one.error = str(error)
        for _ in range(min([rounds, *limits]) + 1):
            for one in taken:
                if one.turns is None or one.error:
                    continue
                time.sleep(BETWEEN_S)
                try:
                    one.rounds.append(one.turns.take())
                except BenchError as error:
                    one.error = str(error)
    return {
        (entry.scenario.name, entry.contender.name): _scenario_run(entry.scenario, one)
        for entry, one in zip(entries, taken, strict=True)
    }


def is_asked(contender: ContenderSpec, scenario: Scenario) -> bool:
    """Whether it is asked for anything: for heads that it has, or for products where it is named."""
    if scenario.contenders and contender.name not in scenario.contenders:
        return False
    return bool(_heads(contender, scenario)) or (contender.is_product and contender.name in scenario.contenders)


def _heads(contender: ContenderSpec, scenario: Scenario) -> tuple[str, ...]:
    return tuple(head for head in scenario.heads if head in contender.heads)


def _entries(
    scenario: Scenario, contenders: Sequence[ContenderSpec], texts: TextMaker | None, threads: int
) -> Sequence[_Entry]:
    batches = texts.batches(scenario.batches) if texts else ()

    def request(contender: ContenderSpec) -> Request:
        if contender.is_product:
            return Request(((),) * PRODUCTS_PER_ROUND, ())
        return Request(batches, _heads(contender, scenario), scenario.clients)

    asked = [one for one in contenders if is_asked(one, scenario)]
    return [_Entry(one, scenario, request(one), scenario.threads or threads) for one in asked]


def _scenario_run(scenario: Scenario, taken: _Taken) -> ScenarioRun:
    return ScenarioRun(
        scenario=scenario.name,
        load_s=taken.turns.load_s if taken.turns else 0.0,
        first_s=taken.turns.first_s if taken.turns else 0.0,
        rounds=tuple(taken.rounds[1:]),  # the first one was for warming up
        error=taken.error,
    )


class _Resident(AbstractContextManager["_Resident"]):
    """Turns of one process that is loaded, asked once, and sleeps in between; or of several that work at once."""

    def __init__(self, entry: _Entry) -> None:
        self._entry, self._stack = entry, ExitStack()
        self._workers: list[WorkerProcess] = []
        self.load_s = self.first_s = 0.0

    def __enter__(self) -> "_Resident":
        request, started_s = self._entry.request, time.perf_counter()
        with ExitStack() as stack:  # what has been started ends if the rest fails
            for _ in range(self._entry.scenario.processes):
                self._workers.append(stack.enter_context(self._entry.start()))
            self.load_s = time.perf_counter() - started_s
            first = Request(request.batches[:1], request.heads)
            self.first_s = max([worker.ask(first).seconds[0] for worker in self._workers])
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self) -> Round:
        """Have all processes do all calls."""
        started_s = time.perf_counter()
        with ThreadPoolExecutor(len(self._workers)) as pool:
            replies = list(pool.map(lambda worker: worker.ask(self._entry.request), self._workers))
        wall_s = time.perf_counter() - started_s if len(replies) > 1 else replies[0].wall_s
        for reply in replies:
            _check(self._entry, reply)
        return Round(
            seconds=tuple(seconds for reply in replies for seconds in reply.seconds),
            tokenise_s=tuple(seconds for reply in replies for seconds in reply.tokenise_s),
            engine_s=tuple(seconds for reply in replies for seconds in reply.engine_s),
            wall_s=wall_s,
            cpu_s=sum(reply.cpu_s for reply in replies),
            resident_bytes=sum(reply.resident_bytes for reply in replies),
            peak_bytes=sum(reply.peak_bytes for reply in replies),
        )


class _Starting(AbstractContextManager["_Starting"]):
    """Turns that are a process each: from its start to its first answer."""

    load_s = first_s = 0.0  # a round is both

    def __init__(self, entry: _Entry) -> None:
        self._entry = entry

    def __exit__(self, *_: object) -> None:
        """Nothing is left between turns."""

    def take(self) -> Round:
        """Start, ask once, end."""
        started_s = time.perf_counter()
        with self._entry.start() as worker:
            reply = worker.ask(self._entry.request)
            seconds = time.perf_counter() - started_s
        _check(self._entry, reply)
        return Round((seconds,), (), (), seconds, reply.cpu_s, reply.resident_bytes, reply.peak_bytes)


def _check(entry: _Entry, reply: Reply) -> None:
    """Other tokens are other work: nothing could be compared."""
    expected = tuple(float(sum(lengths)) for lengths in entry.scenario.batches)
    if not entry.contender.is_product and reply.work != expected:
        got, wanted = next((a, b) for a, b in zip(reply.work, expected, strict=True) if a != b)
        raise WorkerError(f"{entry.contender.name} counted {got:.0f} tokens where {wanted:.0f} were asked for")
