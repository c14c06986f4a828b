"""The order in which texts run: lengths, fairness, batch mates, leaving."""

import gc
from weakref import WeakSet

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_runtime.bundle.manifest import ENCODER_HEADS, Head
from m3_runtime.server.queue import QueuedRequest, QueueLimits, TokenQueue

DENSE = frozenset({Head.DENSE})
ALL = frozenset(ENCODER_HEADS)


def job(*lengths: int, client: str = "a", heads: frozenset[Head] = DENSE) -> QueuedRequest:
    return QueuedRequest(client, heads, [np.zeros(length, np.int32) for length in lengths])


def queue(**limits: int) -> TokenQueue:
    return TokenQueue(QueueLimits(**limits))


def drain(waiting: TokenQueue) -> list[list[tuple[str, int]]]:
    """All batches until nothing waits: client and length of each text."""
    batches = []
    while batch := waiting.take():
        batches.append([(text.request.client, text.tokens) for text in batch])
    return batches


def test_texts_of_one_length_run_together_whoever_sent_them():
    waiting = queue()
    for client in "abc":
        waiting.add(job(9, 5, client=client))
    assert drain(waiting) == [[("a", 5), ("b", 5), ("c", 5)], [("a", 9), ("b", 9), ("c", 9)]]


def test_short_texts_of_many_lengths_run_together_where_they_are_packed():
    waiting = TokenQueue(QueueLimits(batch_tokens=30, batch_texts=4), packed_tokens=16)
    for client in "abc":
        waiting.add(job(9, 17, 5, 16, client=client))
    batches = drain(waiting)
    for batch in batches:
        lengths = [tokens for _, tokens in batch]
        assert set(lengths) == {17} or max(lengths) <= 16
        assert len(batch) <= 4
        assert sum(lengths) <= 30 or len(batch) == 1
    assert any(len({tokens for _, tokens in batch}) > 1 for batch in batches)
    assert sorted(entry for batch in batches for entry in batch) == sorted(
        (client, tokens) for client in "abc" for tokens in (9, 17, 5, 16)
    )


def test_a_dense_only_text_and_one_with_all_heads_do_not_run_together():
    waiting = queue()
    waiting.add(job(5))
    waiting.add(job(5, heads=ALL))
    waiting.add(job(5, heads=frozenset({Head.SPARSE})))
    assert [len(batch) for batch in drain(waiting)] == [1, 2]


def test_a_batch_keeps_to_its_tokens_and_texts():
    waiting = queue(batch_tokens=20, batch_texts=3)
    waiting.add(job(5, 5, 5, 5, 9, 9, 9, 30))
    assert [[tokens for _, tokens in batch] for batch in drain(waiting)] == [[5, 5, 5], [5], [9, 9], [9], [30]]


def test_short_queries_do_not_wait_for_a_passage_of_the_same_client():
    waiting = queue()
    waiting.add(job(600))
    waiting.add(job(12))
    waiting.add(job(600, 600, 600))
    waiting.add(job(14))
    assert [batch[0][1] for batch in drain(waiting)][:2] == [12, 14]


def test_a_new_client_does_not_wait_for_anothers_bulk_job():
    waiting = queue(batch_texts=1)
    waiting.add(job(*[100] * 50, client="bulk"))
    assert waiting.take()[0].request.client == "bulk"
    waiting.add(job(120, client="new"))
    assert waiting.take()[0].request.client == "new"


def test_two_busy_clients_get_the_same_number_of_tokens():
    waiting = queue(batch_texts=1)
    waiting.add(job(*[200] * 30, client="long"))
    waiting.add(job(*range(20, 80), client="short"))
    served = {"long": 0, "short": 0}
    for _ in range(40):
        (text,) = waiting.take()
        served[text.request.client] += text.tokens
    assert abs(served["long"] - served["short"]) <= 200


def test_ever_new_clients_do_not_starve_an_old_one():
    waiting = queue(batch_texts=1)
    waiting.add(job(300, 300, client="old"))
    assert waiting.take()[0].request.client == "old"
    passed = 0
    while True:
        waiting.add(job(10, client=f"new {passed}"))
        if waiting.take()[0].request.client == "old":
            break
        passed += 1
        assert passed < 100


def test_ever_new_queries_of_its_own_do_not_starve_a_passage():
    waiting = queue(batch_texts=1)
    waiting.add(job(300))
    for passed in range(100):
        waiting.add(job(10 + passed % 3))
        if waiting.take()[0].tokens == 300:
            return
    raise AssertionError("a passage of 300 tokens waited for 100 queries of 10")


def test_beside_a_long_run_only_short_texts_are_taken():
    waiting = queue()
    waiting.add(job(600))
    waiting.add(job(30, 30, 30, client="b"))
    assert [text.tokens for text in waiting.take(most_tokens=64)] == [30, 30]
    assert [text.tokens for text in waiting.take(most_tokens=64)] == [30]
    assert waiting.take(most_tokens=64) == ()
    assert [text.tokens for text in waiting.take()] == [600]


def test_room_is_counted_in_tokens():
    waiting = queue(max_tokens=100)
    waiting.add(job(40, 40))
    assert waiting.has_room("a", 20)
    assert not waiting.has_room("a", 21)
    waiting.take()
    assert waiting.tokens == 0
    assert waiting.has_room("a", 100)


def test_who_fills_the_queue_keeps_nobody_else_out():
    waiting = queue(max_tokens=100)
    waiting.add(job(50, 50))
    assert not waiting.has_room("a", 1)
    assert waiting.has_room("new", 25)
    assert not waiting.has_room("new", 26)
    waiting.add(job(10, client="new"))
    assert not waiting.has_room("new", 1)


def test_requests_of_a_client_are_done_in_their_order_and_passed_only_by_smaller_ones():
    waiting = queue(batch_texts=1)
    large, alike = job(30, 31, 32), job(33, 30, 30)
    for request in (large, alike):
        waiting.add(request)
    order = []
    while batch := waiting.take():
        order += [text.request for text in batch]
        if len(order) < 20:
            waiting.add(job(10))
    first, second = ([i for i, which in enumerate(order) if which is request] for request in (large, alike))
    assert max(first) < min(second)
    passed = sum(which is not large for which in order[: max(first)])
    assert 0 < 10 * passed <= large.tokens


def test_who_leaves_is_not_served_and_leaves_nothing_behind():
    waiting = queue(batch_texts=1)
    gone, stays = job(5, 6, 7), job(60)
    waiting.add(gone)
    waiting.add(stays)
    first = waiting.take()[0]
    assert first.request is gone
    waiting.remove(gone)
    waiting.remove(gone)  # as after a late disconnect
    assert (waiting.tokens, waiting.texts) == (60, 1)
    assert waiting.take() == (stays.texts[0],)
    assert waiting.take() == ()


def test_many_cancelled_requests_are_not_remembered():
    waiting, remembered = queue(), WeakSet()
    waiting.add(job(8))  # always first, so that cancelled entries behind it never come up
    for _ in range(1000):
        remembered.add(gone := job(50, 60))
        waiting.add(gone)
        waiting.remove(gone)
    del gone
    gc.collect()
    assert len(remembered) < 100
    assert waiting.texts == 1


class Name(str):
    """A client's name that shows whether anybody remembers it."""


@pytest.mark.parametrize("leave", [lambda waiting, _: waiting.take(), lambda waiting, request: waiting.remove(request)])
def test_an_empty_queue_remembers_nobody(leave):
    waiting, remembered = queue(), WeakSet()
    for number in range(3):
        remembered.add(name := Name(number))
        remembered.add(request := job(5, 5, client=name))
        waiting.add(request)
        leave(waiting, request)
    del name, request
    gc.collect()
    assert (waiting.texts, len(remembered)) == (0, 0)


@given(
    jobs=st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from([DENSE, ALL]), st.lists(st.integers(2, 40), min_size=1)),
        max_size=12,
    ),
    steps=st.lists(st.sampled_from(["add", "take", "short", "remove"]), max_size=60),
    seed=st.integers(0, 2**16),
)
def test_every_text_is_taken_once_or_removed(jobs, steps, seed):
    random = np.random.default_rng(seed)
    waiting, batch_tokens = queue(batch_tokens=64, batch_texts=4), 64
    to_come = [job(*lengths, client=client, heads=heads) for client, heads, lengths in jobs]
    added, removed, taken = [], set(), []
    for step in [*steps, *["add"] * len(jobs), *["take"] * 1000]:
        if step == "add" and to_come:
            added.append(to_come.pop())
            waiting.add(added[-1])
        elif step == "remove" and added:
            gone = added[random.integers(len(added))]
            removed |= {text for text in gone.texts if text.is_waiting}
            waiting.remove(gone)
        elif step in ("take", "short"):
            batch = waiting.take(20 if step == "short" else None)
            taken += batch
            assert len({(text.tokens, len(text.request.heads) == 1) for text in batch}) <= 1
            assert len(batch) <= 1 or sum(text.tokens for text in batch) <= batch_tokens
        present = [text for known in added for text in known.texts if text.is_waiting]
        assert (waiting.texts, waiting.tokens) == (len(present), sum(text.tokens for text in present))
    assert len(taken) == len(set(taken))
    assert set(taken) | removed == {text for known in added for text in known.texts}
    assert not set(taken) & removed
