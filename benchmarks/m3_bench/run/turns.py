"""The engine: contenders as fresh processes, which take turns, round after round, all others idle."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain

from m3_bench.documents import Round, Scenario, ScenarioRun
from m3_bench.errors import BenchError, WorkerError
from m3_bench.run.contenders import ContenderSpec
from m3_bench.texts import TextMaker
from m3_bench.worker_process import WorkerProcess
from m3_bench.workers.serve import Reply, Request

BETWEEN_S = 0.2  # lets the last contender's threads stop spinning
PRODUCTS_PER_ROUND = 10  # matrix products in a round, where a contender multiplies instead of encoding


@dataclass(frozen=True)
class _Entry:
    """A contender at a scenario, and what it is asked for."""

    contender: ContenderSpec
    scenario: Scenario
    request: Request
    threads: int

    def start(self) -> AbstractContextManager[WorkerProcess]:
        """Its process, with the threads of the scenario."""
        command = self.contender.command
        if self.scenario.threads and "threads" in command.options:
            command = replace(command, options={**command.options, "threads": self.threads})
        return WorkerProcess.start(self.contender.name, command, self.threads)

    def asked(self, worker: WorkerProcess) -> Reply:
        """What a process answers; other tokens are other work, and nothing could be compared.

        Raises:
            WorkerError: it failed, or counted other tokens.
        """
        reply = worker.ask(self.request)
        for got, lengths in zip(reply.work, self.scenario.batches, strict=False):
            if not self.contender.is_product and got != sum(lengths):
                raise WorkerError(f"{self.contender.name} counted {got:.0f} tokens where {sum(lengths)} were asked for")
        return reply


@dataclass
class _Result:
    """What came of an entry so far: how long it took to load and to answer first, and its rounds, or an error.

    `take` takes a turn; None where the entry failed.
    """

    load_s: float = 0.0
    first_s: float = 0.0
    take: Callable[[], Round] | None = None
    rounds: list[Round] = field(default_factory=list)
    error: str = ""


def measure_group(
    group: Sequence[Scenario], contenders: Sequence[ContenderSpec], texts: TextMaker | None, rounds: int, threads: int
) -> Mapping[tuple[str, str], ScenarioRun]:
    """Measure scenarios that belong together with every contender; one that fails says why, and the others go on.

    Scenarios of a group take turns too, and a contender is asked for those of the heads that it has. The first call
    after loading is kept apart, and one whole round more is not counted. Texts of a call are made for it and are the
    same for all contenders; matrix products need none.

    Returns:
        By names of scenario and contender.
    """
    entries = [entry for scenario in group for entry in _entries(scenario, contenders, texts, threads)]
    taken: list[_Result] = []
    limits = [one.most_rounds for one in group if one.most_rounds]
    with ExitStack() as stack:
        for entry in entries:
            try:
                taken.append(stack.enter_context((_starting if entry.scenario.is_start else _resident)(entry)))
            except BenchError as error:
                taken.append(_Result(error=str(error)))
        for _ in range(min([rounds, *limits]) + 1):
            for one in taken:
                if one.take is None:
                    continue
                time.sleep(BETWEEN_S)
                try:
                    one.rounds.append(one.take())
                except BenchError as error:
                    one.error, one.take = str(error), None
    return {
        (entry.scenario.name, entry.contender.name): ScenarioRun(
            entry.scenario.name,
            one.load_s,
            one.first_s,
            tuple(one.rounds[1:]),  # the first one was for warming up
            one.error,
        )
        for entry, one in zip(entries, taken, strict=True)
    }


def is_asked(contender: ContenderSpec, scenario: Scenario) -> bool:
    """Whether it is asked for anything: for heads that it has, or for products where it is named."""
    if scenario.contenders and contender.name not in scenario.contenders:
        return False
    return bool(_heads(contender, scenario)) or (contender.is_product and contender.name in scenario.contenders)


def resolved(scenarios: Sequence[Scenario], contenders: Sequence[ContenderSpec]) -> tuple[Scenario, ...]:
    """Scenarios with contenders by name instead of key; without those in which none of these is asked for anything."""
    names, found = {one.key: one.name for one in contenders}, []
    for scenario in scenarios:
        present = dict.fromkeys(names[key] for key in scenario.contenders if key in names)
        one = replace(scenario, contenders=tuple(present))
        if (present or not scenario.contenders) and any(is_asked(contender, one) for contender in contenders):
            found.append(one)
    return tuple(found)


def _heads(contender: ContenderSpec, scenario: Scenario) -> tuple[str, ...]:
    return tuple(head for head in scenario.heads if head in contender.heads)


def _entries(
    scenario: Scenario, contenders: Sequence[ContenderSpec], texts: TextMaker | None, threads: int
) -> Iterator[_Entry]:
    batches = texts.batches(scenario.batches) if texts else ()
    products = Request(((),) * PRODUCTS_PER_ROUND, ())
    for one in contenders:
        if is_asked(one, scenario):
            request = products if one.is_product else Request(batches, _heads(one, scenario), scenario.clients)
            yield _Entry(one, scenario, request, scenario.threads or threads)


@contextmanager
def _resident(entry: _Entry) -> Iterator[_Result]:
    """Turns of one process that is loaded, called once, and idle in between; or of several that work at once."""
    started_s = time.perf_counter()
    with ExitStack() as stack:
        workers = [stack.enter_context(entry.start()) for _ in range(entry.scenario.processes)]
        load_s = time.perf_counter() - started_s
        first = Request(entry.request.batches[:1], entry.request.heads)
        first_s = max([worker.ask(first).seconds[0] for worker in workers])

        def take() -> Round:
            started_s = time.perf_counter()
            with ThreadPoolExecutor(len(workers)) as pool:
                replies = list(pool.map(entry.asked, workers))
            together_s = time.perf_counter() - started_s
            return _round(replies, together_s if len(replies) > 1 else replies[0].wall_s)

        yield _Result(load_s, first_s, take)


@contextmanager
def _starting(entry: _Entry) -> Iterator[_Result]:
    """Turns that are a process each: from its start to its first answer."""

    def take() -> Round:
        started_s = time.perf_counter()
        with entry.start() as worker:
            reply = entry.asked(worker)
            wall_s = time.perf_counter() - started_s
        return _round([replace(reply, seconds=(wall_s,))], wall_s)

    yield _Result(take=take)  # a round is loading and the first call


def _round(replies: Sequence[Reply], wall_s: float) -> Round:
    """All processes' calls one after the other, their memory and processor time added up."""
    return Round(
        seconds=tuple(chain.from_iterable(reply.seconds for reply in replies)),
        wall_s=wall_s,
        cpu_s=sum(reply.cpu_s for reply in replies),
        resident_bytes=sum(reply.resident_bytes for reply in replies),
        peak_bytes=sum(reply.peak_bytes for reply in replies),
    )
