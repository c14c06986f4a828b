"""Recorded vectors: a safetensors file with the three heads' outputs, and in its header what recorded them.

The arrays are those of `workers.vectors`. A reference is such a file whose header also holds the texts, their ids where
they had any, and the `Run` that it was recorded in.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from m3_bench import documents
from m3_bench.documents import Run
from m3_bench.errors import BenchError, DocumentError
from m3_bench.workers.vectors import DENSE, Vectors, from_arrays, to_arrays
from m3_export.verify.parity import Outputs
from m3_runtime.io.atomic import write_whole

RUN_KEY, TEXTS_KEY, IDS_KEY = "m3_bench_run", "texts", "ids"


@dataclass(frozen=True)
class Recording:
    """A reference: what ran (one contender), on which texts, and its vectors.

    `ids` are those of the texts; empty where their file had none, or an earlier release did not keep them.
    """

    run: Run
    texts: tuple[str, ...]
    outputs: Outputs
    ids: tuple[str, ...] = ()


def digest_of(texts: Sequence[str]) -> str:
    """SHA-256 over texts, by which runs and references are known to be of the same ones."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def write_recording(recording: Recording, path: Path) -> None:
    """Write a reference, whole or not at all.

    Raises:
        BenchError: it cannot be written.
    """
    header = {RUN_KEY: documents.to_text(recording.run), TEXTS_KEY: json.dumps(recording.texts, ensure_ascii=False)}
    if recording.ids:
        header[IDS_KEY] = json.dumps(recording.ids, ensure_ascii=False)
    write_outputs(recording.outputs, path, header)


def read_recording(path: Path) -> Recording:
    """Read a reference.

    Raises:
        DocumentError: it is no reference, of a newer schema, damaged, of other texts than it says, or holds NaN.
    """
    outputs, header = _read(path)
    if RUN_KEY not in header or TEXTS_KEY not in header:
        raise DocumentError(f"{str(path)!r} is no reference of m3-bench record: its header says nothing of a run")
    run = documents.expected(Run, documents.from_text(header[RUN_KEY], str(path)), f"the header of {str(path)!r}")
    texts, ids = (_texts(header.get(key, "[]"), key, path) for key in (TEXTS_KEY, IDS_KEY))
    if len(outputs.dense) != len(texts):
        raise DocumentError(f"{str(path)!r} holds {len(texts)} texts but vectors of {len(outputs.dense)}; record again")
    if ids and len(ids) != len(texts):
        raise DocumentError(f"{str(path)!r} holds {len(texts)} texts but {len(ids)} ids; record again")
    return Recording(run, texts, outputs, ids)


def _texts(text: str, what: str, path: Path) -> tuple[str, ...]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"the {what} of {str(path)!r} are not JSON ({error}); record it again") from error
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise DocumentError(f"the header of {str(path)!r} has no list of {what}; record it again")
    return tuple(found)


def write_outputs(outputs: Outputs, path: Path, header: Mapping[str, str] | None = None) -> None:
    """Write vectors, whole or not at all.

    Raises:
        BenchError: they cannot be written.
    """
    arrays = to_arrays(Vectors(outputs.dense, outputs.lexical, outputs.colbert))
    try:
        write_whole(path, save({name: np.ascontiguousarray(v) for name, v in arrays.items()}, dict(header or {})))
    except (OSError, SafetensorError) as error:
        raise BenchError(f"{str(path)!r} cannot be written: {error}") from error


def read_outputs(path: Path) -> Outputs:
    """Read vectors.

    Raises:
        DocumentError: the file is missing, damaged, or holds NaN.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[Outputs, dict[str, str]]:
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays: dict[str, NDArray[Any]] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DocumentError(f"{str(path)!r} cannot be read: {error}; record it again") from error
    if DENSE not in arrays:
        raise DocumentError(f"{str(path)!r} has no dense vectors; it was not written by m3-bench")
    for name, values in arrays.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise DocumentError(f"{str(path)!r}: {name} holds NaN or infinity; what recorded it has failed")
    try:
        found = from_arrays(arrays)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise DocumentError(f"{str(path)!r}: its arrays do not fit together ({error}); record it again") from error
    return Outputs(found.dense, found.lexical, found.colbert), header
