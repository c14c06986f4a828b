"""pyarrow, which the extra `bulk` brings. It is large, so it is imported when it is needed."""

from typing import Any

from m3_runtime.errors import ExtraNotInstalledError

_REMEDY = 'bulk encoding needs pyarrow; pip install "m3-runtime[bulk]"'


def arrow() -> Any:
    """The package.

    Raises:
        ExtraNotInstalledError: pyarrow is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise ExtraNotInstalledError(_REMEDY) from error
    return pyarrow


def parquet() -> Any:
    """Its Parquet half.

    Raises:
        ExtraNotInstalledError: pyarrow is not installed.
    """
    try:
        from pyarrow import parquet as found
    except ImportError as error:
        raise ExtraNotInstalledError(_REMEDY) from error
    return found
