"""Importing the engines without their telemetry.

`import openvino` (and nncf) starts a session of the package openvino_telemetry, which takes it for consent that the
user was never asked: it writes an id to the home folder and sends it out. Both packages have a fallback of their own
for when it is not installed; that is what they get here.

`import onnxruntime`, from 1.29 on, writes an id and a queue of events into the home folder, to be sent to its makers,
unless ORT_DISABLE_TELEMETRY is in the environment; it looks once, at the import (microsoft/onnxruntime, pull request
27379). A user who has set that variable, to whatever, has decided.
"""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from m3_runtime.bundle.manifest import EngineName
from m3_runtime.errors import EngineNotInstalledError

INSTALL = {
    EngineName.ONNXRUNTIME: "pip install m3-runtime",
    EngineName.OPENVINO: 'pip install "m3-runtime[openvino]"',
}
"""What brings an engine's package."""

_OPENVINO_PACKAGE = "openvino_telemetry"
_ONNXRUNTIME_SWITCH = "ORT_DISABLE_TELEMETRY"


@contextmanager
def without_telemetry() -> Iterator[None]:
    """What is imported inside for the first time has no telemetry. What was imported before is left alone."""
    is_hiding, is_switching = _OPENVINO_PACKAGE not in sys.modules, _ONNXRUNTIME_SWITCH not in os.environ
    if is_hiding:
        sys.modules[_OPENVINO_PACKAGE] = None  # type: ignore[assignment]  # what makes `import` raise ImportError
    if is_switching:
        os.environ[_ONNXRUNTIME_SWITCH] = "1"
    try:
        yield
    finally:
        if is_hiding:
            del sys.modules[_OPENVINO_PACKAGE]
        if is_switching:
            del os.environ[_ONNXRUNTIME_SWITCH]


def engine_package(engine: EngineName) -> Any:
    """The package behind an engine, imported without its telemetry.

    Raises:
        EngineNotInstalledError: it is missing.
    """
    try:
        with without_telemetry():
            return importlib.import_module(engine.value)
    except ImportError as error:
        raise EngineNotInstalledError(
            f"{engine.value} cannot be imported ({error}); install it: {INSTALL[engine]}"
        ) from error
