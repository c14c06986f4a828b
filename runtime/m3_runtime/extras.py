"""Packages that extras bring, imported when they are needed; a missing one is named together with its extra."""

import importlib
from typing import Any

from m3_runtime.errors import ExtraNotInstalledError


def import_extra(module: str, extra: str) -> Any:
    """Import a module of a package that an extra brings.

    Args:
        module: full name, `pyarrow.parquet` for instance.
        extra: of this distribution.

    Raises:
        ExtraNotInstalledError: the package is not installed.

    >>> import_extra("no_such_package.part", "bulk")
    Traceback (most recent call last):
    ...
    m3_runtime.errors.ExtraNotInstalledError: this needs no_such_package; pip install "m3-runtime[bulk]"
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ExtraNotInstalledError(f'this needs {package}; pip install "m3-runtime[{extra}]"') from error
