"""How tests wait for other threads and processes: however busy the machine is, only a failure waits long."""

import time
from collections.abc import Callable

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
