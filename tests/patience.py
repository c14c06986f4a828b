"""How tests wait for other threads and processes: however busy the machine is, only a failure waits long."""

import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 300.0


def wait_until(is_so: Callable[[], object], otherwise: Callable[[], str] = lambda: "waited in vain") -> None:
    """Look again and again until something is so.

    Args:
        is_so: what is looked at.
        otherwise: what to say when it is not so after `PATIENCE_S`.
    """
    end_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end_s, otherwise()
        time.sleep(0.02)


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that nobody has waited for: containers may lack an init that does."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
