"""Runs one row: its contenders take turns, round after round, everybody else asleep."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from tempfile import TemporaryFile

from m3_bench.bars.contenders import Setup, command_of
from m3_bench.bars.holding import Held, holding
from m3_bench.bars.rows import Planned, Row, Side, Workload
from m3_bench.bars.stats import Turn
from m3_bench.errors import NotApplicableError, WorkerError
from m3_bench.texts import TextMaker
from m3_bench.worker_process import Command, WorkerProcess
from m3_bench.workers.messages import Reply, Request

BETWEEN_S = 0.2  # lets the last contender's threads stop spinning


@dataclass(frozen=True)
class SideRun:
    """A side and its turns so far.

    `versions` are of the packages that computed; `dense` is the first text's vector, empty where there is none.
    """

    side: Side
    versions: dict[str, str]
    dense: tuple[float, ...]
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class RowRun:
    """A row's raw values after some rounds; `held` says of the sides of a regret row whether they hold the budget."""

    row: Row
    sides: tuple[SideRun, ...]
    held: Mapping[Planned, Held] = field(default_factory=dict)

    def held_by(self, side: SideRun) -> Held | None:
        """Whether and how far a side holds its budget; None where that was not asked."""
        contender = side.side.contender
        return self.held.get(contender) if isinstance(contender, Planned) else None

    def dense_cosine(self, index: int) -> float | None:
        """Between the first text's dense vectors of the first side and another; None where they had other texts."""
        first, other = self.sides[0], self.sides[index]
        if not other.dense or first.side.workload.lengths != other.side.workload.lengths:
            return None
        return cosine(first.dense, other.dense)


@dataclass(frozen=True)
class _Work:
    """A request, and the tokens of its batches (0 where there are no texts): what the reply must have counted."""

    request: Request
    tokens: tuple[float, ...]


@dataclass(frozen=True)
class _Task:
    """A side with its command known and its texts made."""

    side: Side
    command: Command
    threads: int
    work: _Work
    warmup: _Work

    @property
    def name(self) -> str:
        return str(self.side.contender)


@dataclass(frozen=True)
class _Taken:
    """One turn, and what its worker said besides."""

    turn: Turn
    versions: dict[str, str]
    dense: tuple[float, ...]


Take = Callable[[_Work], _Taken]


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Cosine of two vectors.

    >>> cosine([3.0, 4.0], [4.0, 3.0])
    0.96
    """
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def measure_row(row: Row, setup: Setup, texts: TextMaker, rounds: int) -> Iterator[RowRun]:
    """Measure a row; yields what there is after every round.

    Each side is a process of its own, started before the first round and asleep except in its turns (where a row is
    about starting: a process for every turn). What a first turn costs more is left out by a warm-up.

    Args:
        row: what to measure.
        setup: where everything is.
        texts: makes the texts; sides with the same lengths get the same.
        rounds: how many, at least 1.

    Raises:
        NotApplicableError: this processor cannot run one of the sides.
        M3Error: a side could not be made ready, or failed.
    """
    tasks = _tasks(row, setup, texts)
    held = holding([one for one in (side.contender for side in row.sides) if isinstance(one, Planned)], setup)
    taken: list[list[_Taken]] = [[] for _ in tasks]
    with ExitStack() as stack:
        takes = [stack.enter_context(_started_each_time(task) if row.is_start else _resident(task)) for task in tasks]
        for task, take in zip(tasks, takes, strict=True):
            take(task.warmup)
        for _ in range(rounds):
            for task, take, turns in zip(tasks, takes, taken, strict=True):
                time.sleep(BETWEEN_S)
                turns.append(take(task.work))
            sides = (_side_run(task.side, turns) for task, turns in zip(tasks, taken, strict=True))
            yield RowRun(row, tuple(sides), held)


def _side_run(side: Side, taken: Sequence[_Taken]) -> SideRun:
    return SideRun(side, taken[-1].versions, taken[-1].dense, tuple(one.turn for one in taken))


def _tasks(row: Row, setup: Setup, texts: TextMaker) -> list[_Task]:
    """Every side made ready before any is started; without the optional ones that cannot run here."""
    longest, made = setup.bundle.manifest.geometry.max_tokens, _Works(texts)
    tasks = []
    for side in row.sides:
        threads = side.threads or setup.threads
        try:
            command = command_of(side.contender, replace(setup, threads=threads))
        except NotApplicableError:
            if not side.is_optional:
                raise
            continue
        work, warmup = (made.of(one.within(longest)) for one in (side.workload, row.warmup or side.workload))
        tasks.append(_Task(side, command, threads, work, warmup))
    return tasks


class _Works:
    """Texts of a row's workloads; the same lengths get the same texts."""

    def __init__(self, texts: TextMaker) -> None:
        self._texts = texts
        self._made: dict[tuple[tuple[int, ...], ...], tuple[tuple[str, ...], ...]] = {}

    def of(self, workload: Workload) -> _Work:
        """Texts of these lengths, and how many tokens they have."""
        lengths = workload.lengths
        if lengths not in self._made:
            self._made[lengths] = self._texts.batches(lengths)
        return _Work(Request(self._made[lengths], workload.heads), tuple(float(sum(batch)) for batch in lengths))


@contextmanager
def _resident(task: _Task) -> Iterator[Take]:
    """Turns of one process, which sleeps in between; or of several that work at the same time."""
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                WorkerProcess.start(task.name, task.command, task.threads, stack.enter_context(TemporaryFile("w+")))
            )
            for _ in range(task.side.processes)
        ]
        pool = stack.enter_context(ThreadPoolExecutor(len(workers)))

        def take(work: _Work) -> _Taken:
            started_s = time.perf_counter()
            replies = list(pool.map(lambda worker: _checked(task, work, worker.ask(work.request)), workers))
            wall_s = time.perf_counter() - started_s
            return _Taken(_turn(replies, wall_s), workers[0].ready.versions, replies[0].dense)

        yield take


def _turn(replies: Sequence[Reply], wall_s: float) -> Turn:
    """Of one process its batches; of several, what they did together on the clock."""
    resident, peak = sum(one.resident_bytes for one in replies), sum(one.peak_bytes for one in replies)
    if len(replies) == 1:
        return Turn(replies[0].seconds, replies[0].work, resident, peak)
    return Turn((wall_s,), (sum(sum(one.work) for one in replies),), resident, peak)


@contextmanager
def _started_each_time(task: _Task) -> Iterator[Take]:
    """Turns that are a process each: from its start to its first answer."""

    def take(work: _Work) -> _Taken:
        with TemporaryFile("w+") as errors:
            started_s = time.perf_counter()
            with WorkerProcess.start(task.name, task.command, task.threads, errors) as worker:
                reply = _checked(task, work, worker.ask(work.request))
                turn = Turn((time.perf_counter() - started_s,), (1.0,), reply.resident_bytes, reply.peak_bytes)
                return _Taken(turn, worker.ready.versions, reply.dense)

    yield take


def _checked(task: _Task, work: _Work, reply: Reply) -> Reply:
    """The reply, if the contender had as many tokens as we asked for."""
    if any(work.tokens) and reply.work != work.tokens:
        raise WorkerError(f"{task.name} counted {reply.work} tokens where {work.tokens} were asked for")
    return reply
