from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3_runtime.splitting import RunLimit, greedy_runs

LIMITS = st.builds(RunLimit, st.integers(1, 6), st.integers(1, 20))


@pytest.mark.parametrize(
    ("sizes", "limit", "runs"),
    [
        ([], RunLimit(2, 10), []),
        ([3, 3, 3, 3], RunLimit(9, 6), [(0, 2), (2, 4)]),
        ([3, 3, 3, 3], RunLimit(3, 99), [(0, 3), (3, 4)]),
        ([50, 1, 1, 50], RunLimit(9, 10), [(0, 1), (1, 3), (3, 4)]),
        ([5, 5, 1], RunLimit(9, 10), [(0, 2), (2, 3)]),
    ],
)
def test_runs_keep_to_the_limit(sizes, limit, runs):
    assert [(run.start, run.stop) for run in greedy_runs(sizes, limit)] == runs


@given(st.lists(st.integers(0, 30)), LIMITS, st.none() | LIMITS)
def test_runs_are_whole_within_the_limit_and_as_long_as_it_allows(sizes, limit, first):
    runs = list(greedy_runs(sizes, limit, first=first))
    assert [index for run in runs for index in run] == list(range(len(sizes)))
    limits = [limit if first is None else first, *[limit] * len(runs)]
    for run, within in zip(runs, limits, strict=False):
        total = sum(sizes[index] for index in run)
        assert len(run) == 1 or (len(run) <= within.items and total <= within.size)
    for (run, following), within in zip(pairwise(runs), limits, strict=False):
        total = sum(sizes[index] for index in run) + sizes[following.start]
        assert len(run) + 1 > within.items or total > within.size
