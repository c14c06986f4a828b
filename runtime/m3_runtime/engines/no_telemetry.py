"""Importing Intel's packages without their telemetry.

`import openvino` (and nncf) starts a session of the package openvino_telemetry, which takes it for consent that the
user was never asked: it writes an id to the home folder and sends it out. Both packages have a fallback of their own
for when it is not installed; that is what they get here.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

TELEMETRY = "openvino_telemetry"


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Inside, openvino_telemetry cannot be imported. Who has imported it before is left alone."""
    if TELEMETRY in sys.modules:
        yield
        return
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # what makes `import` raise ImportError
    try:
        yield
    finally:
        del sys.modules[TELEMETRY]
