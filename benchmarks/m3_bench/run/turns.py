"""One scenario: every contender a fresh process, then turns, round after round, everybody else asleep."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO

from m3_bench.documents import Round, Scenario, ScenarioRun
from m3_bench.errors import BenchError, WorkerError
from m3_bench.run.candidates import Candidate
from m3_bench.texts import TextMaker
from m3_bench.worker_process import WorkerProcess
from m3_bench.workers.messages import Reply, Request

BETWEEN_S = 0.2  # lets the last contender's threads stop spinning


@dataclass(frozen=True)
class _Started:
    """A contender that has loaded and answered once."""

    worker: WorkerProcess
    load_s: float
    first_s: float


def measure_scenario(
    scenario: Scenario, candidates: Sequence[Candidate], texts: TextMaker, rounds: int, threads: int
) -> Mapping[str, ScenarioRun]:
    """Measure one scenario with every candidate; one that fails says why, and the others go on.

    The first call after loading is kept apart, and one whole turn more is not counted. Texts of a call are made for it
    and are the same for all candidates.

    Args:
        scenario: what is asked for.
        candidates: who is asked, each for those of the heads that it has.
        texts: makes the texts.
        rounds: how often each is asked.
        threads: of each.
    """
    asked = [one for one in candidates if is_able(one, scenario)]
    batches = texts.batches((scenario.lengths,) * scenario.calls)
    requests = {one.name: Request(batches, _heads(one, scenario), scenario.clients) for one in asked}
    errors: dict[str, str] = {}
    found: dict[str, list[Round]] = {one.name: [] for one in asked}
    with ExitStack() as stack:
        started: dict[str, _Started] = {}
        for one in asked:
            try:
                log = stack.enter_context(tempfile.TemporaryFile("w+"))
                started[one.name] = stack.enter_context(_Opened(one, threads, log, requests[one.name]))
            except BenchError as error:
                errors[one.name] = str(error)
        for _ in range(rounds + 1):
            for name in [name for name in started if name not in errors]:
                time.sleep(BETWEEN_S)
                try:
                    found[name].append(_round(name, scenario, started[name].worker.ask(requests[name])))
                except BenchError as error:
                    errors[name] = str(error)
    return {
        one.name: ScenarioRun(
            scenario=scenario.name,
            load_s=started[one.name].load_s if one.name in started else 0.0,
            first_s=started[one.name].first_s if one.name in started else 0.0,
            rounds=tuple(found[one.name][1:]),  # the first one was for warming up
            error=errors.get(one.name, ""),
        )
        for one in asked
    }


def is_able(candidate: Candidate, scenario: Scenario) -> bool:
    """Whether it has any of the heads that are asked for."""
    return bool(_heads(candidate, scenario))


def _heads(candidate: Candidate, scenario: Scenario) -> tuple[str, ...]:
    return tuple(head for head in scenario.heads if head in candidate.heads)


class _Opened:
    """A candidate's process while it is needed: started, loaded, asked once. A context manager."""

    def __init__(self, candidate: Candidate, threads: int, log: IO[str], request: Request) -> None:
        self._candidate, self._threads, self._log = candidate, threads, log
        self._first = Request(request.batches[:1], request.heads)
        self._worker: WorkerProcess | None = None

    def __enter__(self) -> _Started:
        started_s = time.perf_counter()
        worker = WorkerProcess.start(self._candidate.name, self._candidate.command, self._threads, self._log)
        load_s = time.perf_counter() - started_s
        try:
            first_s = worker.ask(self._first).seconds[0]
        except BaseException:
            worker.close()
            raise
        self._worker = worker
        return _Started(worker, load_s, first_s)

    def __exit__(self, *_: object) -> None:
        if self._worker is not None:
            self._worker.close()


def _round(name: str, scenario: Scenario, reply: Reply) -> Round:
    if any(work != scenario.tokens for work in reply.work):
        raise WorkerError(f"{name} counted {reply.work[0]:.0f} tokens where {scenario.tokens} were asked for")
    return Round(
        seconds=reply.seconds,
        tokenise_s=reply.tokenise_s,
        engine_s=reply.engine_s,
        wall_s=reply.wall_s,
        cpu_s=reply.cpu_s,
        resident_bytes=reply.resident_bytes,
        peak_bytes=reply.peak_bytes,
    )
