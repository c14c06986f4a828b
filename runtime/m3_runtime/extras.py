"""Packages that extras bring, imported when they are needed; a missing one is named together with its extra."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from m3_runtime.errors import ExtraNotInstalledError


@contextmanager
def needs_extra(packages: str, extra: str) -> Iterator[None]:
    """Import inside the block what an extra of this distribution brings.

    Raises:
        ExtraNotInstalledError: a package is not installed; `packages` is what the error calls them.
    """
    try:
        yield
    except ImportError as error:
        raise ExtraNotInstalledError(f'this needs {packages}; pip install "m3-runtime[{extra}]"') from error


def import_extra(module: str, extra: str) -> Any:
    """Import a module of a package that an extra brings, `pyarrow.parquet` for instance.

    Raises:
        ExtraNotInstalledError: the package is not installed.

    >>> import_extra("no_such_package.part", "bulk")
    Traceback (most recent call last):
    ...
    m3_runtime.errors.ExtraNotInstalledError: this needs no_such_package; pip install "m3-runtime[bulk]"
    """
    with needs_extra(module.partition(".")[0], extra):
        return importlib.import_module(module)
