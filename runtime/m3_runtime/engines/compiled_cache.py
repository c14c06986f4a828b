"""Compiled forms of variants, kept from one opening to the next: nothing else is read back than what was written.

OpenVINO spends a second and more on rewriting a full-size graph. What comes of it is kept without the weights
(CACHE_MODE=OPTIMIZE_SIZE), which are mapped from the bundle as ever: 5 MB for BGE-M3. Each variant has a file, whose
name says for which files, properties and processor it was compiled, and in it the release that compiled and a digest.
The file is complete or absent: it is written under another name and renamed.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import Variant
from m3_runtime.bundle.reader import Bundle
from m3_runtime.cpu import cpu_info
from m3_runtime.errors import InputError
from m3_runtime.io.atomic import write_whole

_log = logging.getLogger("m3_runtime")


@dataclass(frozen=True)
class CompiledForm:
    """What is kept: OpenVINO's export, and what the graph's optional inputs are by default."""

    export: bytes
    defaults: Mapping[str, NDArray[np.int64]]


def cache_file(cache_dir: Path, bundle: Bundle, variant: Variant, threads: int) -> Path:
    """Where a variant's compiled form belongs. Anything that it depends on and that changes gives another file."""
    used = {variant.graph, *variant.files}
    cpu = cpu_info()
    facts = {
        "files": {entry.path: entry.sha256 for entry in bundle.manifest.files if entry.path in used},
        "properties": dict(variant.properties),
        "processor": [cpu.name, cpu.architecture, sorted(cpu.flags)],
        "threads": threads,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return cache_dir / f"{variant.name}-{digest[:32]}.compiled"


def checked_cache_dir(cache_dir: str | Path) -> Path:
    """The user's cache folder, made if it is not there.

    Raises:
        InputError: it cannot be made, or is no folder.
    """
    folder = Path(cache_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cache_dir {str(cache_dir)!r} cannot be used ({error.strerror}); name a folder that may be written"
        ) from error
    return folder.resolve()


def kept_form(file: Path, release: str) -> CompiledForm | None:
    """What was kept in `file`; None if nothing was, or it is damaged or of another release than `release`."""
    try:
        head, _, export = file.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("%s cannot be read: %s", file, error.strerror)
        return None
    try:
        header = json.loads(head)
        defaults = {
            name: np.array(values, np.int64).reshape(shape) for name, (shape, values) in header["defaults"].items()
        }
        if header == _head(form := CompiledForm(export, defaults), release):
            return form
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    _log.warning("the compiled form in %s is damaged or of another release; it is compiled again", file)
    return None


def keep_form(file: Path, form: CompiledForm, release: str) -> None:
    """Keep a compiled form in `file`, or say why not."""
    head = json.dumps(_head(form, release)).encode()
    try:
        write_whole(file, head + b"\n" + form.export)
    except OSError as error:
        _log.warning("nothing is kept in %s: %s", file.parent, error.strerror)


def _head(form: CompiledForm, release: str) -> dict[str, object]:
    defaults = {name: [list(value.shape), value.flatten().tolist()] for name, value in form.defaults.items()}
    return {"release": release, "defaults": defaults, "sha256": hashlib.sha256(form.export).hexdigest()}
