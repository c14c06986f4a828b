"""Vectors and scores into files and streams: JSON Lines and npz."""

import io
import json
import os
import stat
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from m3_runtime.encode.colbert import PackedRows, joined_rows
from m3_runtime.encode.encoding import Encoding
from m3_runtime.errors import InputError
from m3_runtime.io.atomic import whole_file

STDOUT = "-"


@contextmanager
def opened_output(target: str, inputs: Sequence[str | Path] = ()) -> Iterator[BinaryIO]:
    """A file to write to: standard output for "-", else one that takes the target's name when it is complete.

    What exists and is no regular file (a pipe, /dev/null) is not replaced but written to.
    `inputs` is what the command reads, and must not write over: see `check_no_input`.

    Raises:
        InputError: the target cannot be opened for writing, or is an input.
    """
    check_no_input(target, inputs)
    if target == STDOUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    with ExitStack() as stack:
        try:
            is_special = path.exists() and not path.is_file()
            file = stack.enter_context(_Stream(path.open("wb", buffering=0)) if is_special else whole_file(path))
        except OSError as error:
            raise InputError(f"cannot write {target!r}: {error.strerror}") from error
        yield file


def check_no_input(target: str | Path, inputs: Sequence[str | Path]) -> None:
    """Refuse to write over what is read, by whatever spelling, link or mount of its path.

    "-" is standard output, which may be redirected into a file, or standard input. Of a folder among the inputs no file
    may be written over.

    Raises:
        InputError: the target is an input, or in one.
    """
    written = identities([target], sys.stdout)
    above = identities([] if target == STDOUT else Path(os.path.realpath(target)).parents)
    for name in inputs:
        read = identities([name], sys.stdin)
        if read & (written | (above if Path(name).is_dir() else set())):
            shown = "standard output" if target == STDOUT else repr(str(target))
            raise InputError(f"{shown} is the input {str(name)!r}, or in it, and would be written over; choose another")


def identities(paths: Iterable[str | Path], stream: Any = None) -> set[tuple[int, int]]:
    """Which files and folders paths name, "-" the stream if given; none where nothing is there, or a device or pipe."""
    found = set()
    for path in paths:
        with suppress(OSError, ValueError):  # not there; a stream without a number
            state = Path(path).stat() if stream is None or path != STDOUT else os.fstat(stream.fileno())
            if stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode):
                found.add((state.st_dev, state.st_ino))
    return found


class _Stream(io.BufferedWriter):
    """A device or a pipe. It has no positions: /dev/null says that it is at 0 always, and zipfile would believe it."""

    def tell(self) -> int:
        raise io.UnsupportedOperation("a stream has no positions")


def jsonl_lines(ids: Sequence[str], encoding: Encoding) -> Iterator[bytes]:
    """Yield one JSON object a text: its id, its token count and the heads that were asked for."""
    lexical = encoding.lexical_weights
    for row, name in enumerate(ids):
        record: dict[str, Any] = {"id": name, "tokens": int(encoding.token_counts[row])}
        if encoding.dense_vecs is not None:
            record["dense_vecs"] = _short(encoding.dense_vecs[row])
        if isinstance(lexical, list):
            record["lexical_weights"] = dict(
                zip(lexical[row], _short(np.fromiter(lexical[row].values(), np.float32)), strict=True)
            )
        if encoding.colbert_vecs is not None:
            values, scales = joined_rows([encoding.colbert_vecs[row]])
            record["colbert_vecs"] = [_short(vector) for vector in values]
            if scales is not None:
                record["colbert_scales"] = _short(scales)
        yield json_line(record)


def json_line(record: dict[str, Any]) -> bytes:
    """A JSON object as a line of UTF-8."""
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()


def write_npz(file: BinaryIO, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write what `numpy.load` reads, without pickle: `numpy.savez` would pickle arrays of objects.

    Raises:
        ValueError: an array holds objects.
    """
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def npz_arrays(ids: Sequence[str], parts: Sequence[Encoding], colbert_space_id: str = "") -> dict[str, NDArray[Any]]:
    """Everything as arrays, without pickle.

    `ids` (S,), `token_counts` (S,), and per head: `dense_vecs` (S, H); `sparse_indptr` (S+1,), `sparse_ids` and
    `sparse_weights`; `colbert_indptr` (S+1,) and `colbert_vecs` (rows, C), all texts one after the other. Of packed
    rows `colbert_vecs` are the values as in `PackedRows`, with `colbert_scales` (rows,), `colbert_dtype` and
    `colbert_dim`. Of rows on principal axes there is `colbert_space_id`, if given.
    """
    arrays: dict[str, NDArray[Any]] = {
        "ids": np.array(ids, dtype=np.str_),
        "token_counts": np.concatenate([part.token_counts for part in parts]),
    }
    dense = [part.dense_vecs for part in parts if part.dense_vecs is not None]
    if dense:
        arrays["dense_vecs"] = np.concatenate(dense)
    sparse = [part.sparse for part in parts if part.sparse is not None]
    if sparse:
        arrays["sparse_indptr"] = _starts(np.concatenate([np.diff(vectors.indptr) for vectors in sparse]))
        arrays["sparse_ids"] = np.concatenate([vectors.ids for vectors in sparse])
        arrays["sparse_weights"] = np.concatenate([vectors.weights for vectors in sparse])
    colbert = [rows for part in parts if part.colbert_vecs is not None for rows in part.colbert_vecs]
    if colbert:
        arrays["colbert_indptr"] = _starts(np.array([len(rows) for rows in colbert]))
        arrays["colbert_vecs"], scales = joined_rows(colbert)
        if scales is not None and isinstance(first := colbert[0], PackedRows):
            arrays["colbert_scales"] = scales
            arrays["colbert_dtype"], arrays["colbert_dim"] = np.array(first.dtype.value), np.array(first.dim)
        if colbert_space_id:
            arrays["colbert_space_id"] = np.array(colbert_space_id)
    return arrays


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


def _short(vector: NDArray[Any]) -> list[float]:
    """Floats with as many digits as their own precision needs, not the 17 of a float64; integers as they are."""
    if vector.dtype.kind != "f":
        return list(vector.tolist())
    return [float(text) for text in vector.astype(np.str_)]
