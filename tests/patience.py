"""Waiting for other threads and processes: the limit is so generous that only a failure takes long."""

import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 300.0


def wait_until(condition: Callable[[], object], failure: Callable[[], str] = lambda: "timed out") -> None:
    """Check a condition again and again until it holds.

    Args:
        condition: what has to become true.
        failure: describes the state if it is still false after `PATIENCE_S`.
    """
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, failure()
        time.sleep(0.02)


def has_ended(pid: int) -> bool:
    """Whether a process is gone or a zombie; a container may lack an init process that reaps zombies."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
