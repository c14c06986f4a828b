"""How long a request takes is known well enough when it comes."""

import numpy as np
import pytest

from m3_runtime.bundle.manifest import Head
from m3_runtime.server.queue import QueuedRequest, QueueLimits, ThroughputEstimate, TokenQueue

DEADLINE_S = 30.0


def measured(tokens_per_s: int) -> ThroughputEstimate:
    estimate = ThroughputEstimate()
    estimate.ran(tokens_per_s, 1.0)
    return estimate


def test_nothing_is_known_before_anything_has_run():
    assert ThroughputEstimate().most_s(10**9, 3) == 0


def test_the_last_seconds_count():
    estimate = measured(100)
    for _ in range(40):
        estimate.ran(100, 2.0)
    assert estimate.seconds(500) == pytest.approx(10, rel=0.01)


def test_many_short_runs_count_as_one_long_one():
    estimate = ThroughputEstimate()
    for _ in range(1000):
        estimate.ran(1, 0.001)
    estimate.ran(9000, 1.0)
    assert estimate.seconds(10_000) == pytest.approx(2, rel=0.1)


def test_of_others_counts_what_runs_before():
    waiting = TokenQueue(QueueLimits())
    waiting.add(job("bulk", 200))
    waiting.add(job("b", 10))
    assert waiting.tokens_before("bulk", 250) == 200 + 250 + 10
    assert waiting.tokens_before("bulk", 50) == 50 + 10  # it overtakes
    assert waiting.tokens_before("b", 50) == 10 + 50 + 60
    assert waiting.tokens_before("new", 30) == 30 + 30 + 10
    assert measured(1).most_s(90, 2) == pytest.approx(90 * (1 + 2 / 10))
    while waiting.take():
        pass
    assert waiting.tokens_before("bulk", 50) == 50


def job(client: str, *lengths: int) -> QueuedRequest:
    return QueuedRequest(client, frozenset({Head.DENSE}), [np.zeros(length, np.int32) for length in lengths])


class Server:
    """1000 tokens per second, in a time of its own; requests come five times as fast, whatever becomes of them."""

    def __init__(self, seed: int, texts: int, tokens: int) -> None:
        self.random, self.texts, self.tokens = np.random.default_rng(seed), texts, tokens
        self.waiting, self.estimate = TokenQueue(QueueLimits()), measured(1000)
        self.now_s = self.due_s = 0.0
        self.missing: dict[QueuedRequest, tuple[int, float]] = {}
        self.took_s: list[float] = []
        self.refused = 0

    def go_on(self, tokens_per_s: float, until_s: float) -> None:
        while self.now_s < until_s:
            while self.due_s <= self.now_s:
                self.ask()
                self.due_s += self.random.exponential(self.texts * self.tokens / 4 / 5000)
            batch = self.waiting.take()
            if batch:
                duration_s = sum(text.tokens for text in batch) / tokens_per_s
                self.now_s += duration_s
                self.estimate.ran(sum(text.tokens for text in batch), duration_s)
            else:
                self.now_s = self.due_s
            for text in batch:
                self.hand_out(text.request)

    def ask(self) -> None:
        request = job("a", *self.random.integers(5, self.tokens, self.random.integers(1, self.texts)).tolist())
        most_s = self.estimate.most_s(self.waiting.tokens_before("a", request.tokens), len(self.missing))
        if self.waiting.has_room("a", request.tokens) and most_s <= DEADLINE_S:
            self.waiting.add(request)
            self.missing[request] = len(request.texts), self.due_s
        else:
            self.refused += 1

    def hand_out(self, job: QueuedRequest) -> None:
        left, came_s = self.missing.pop(job)
        if left > 1:
            self.missing[job] = left - 1, came_s
        else:
            self.took_s.append(self.now_s - came_s)


@pytest.mark.parametrize(("texts", "tokens"), [(2, 100), (16, 20), (16, 100), (100, 50)])
def test_who_is_let_in_is_done_in_time_at_five_times_the_load(texts, tokens):
    server = Server(0, texts, tokens)
    server.go_on(1000, 100)
    assert max(server.took_s) < DEADLINE_S
    assert all(server.now_s - came_s < DEADLINE_S for _, came_s in server.missing.values())
    assert server.refused > len(server.took_s) > 50
