"""Ids that several rows have. They are counted, not removed: only their owner knows which row is meant."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3_runtime.errors import InputError
from m3_runtime.extras import import_extra


def repeated_ids(shards: Sequence[Path]) -> tuple[int, str]:
    """How many rows of shards have an id that a row before them has, and one such id; 0 and "" where none has.

    An id is held as 8 bytes, its hash: in 10⁸ rows two ids that differ are taken for one with a chance of 0.03 %.

    Args:
        shards: files that are complete.

    Raises:
        InputError: one cannot be read: it was changed.
    """
    repeated = came_again([np.fromiter(map(hash, _ids(path)), np.int64) for path in shards])
    if not len(repeated):
        return 0, ""
    return len(repeated), next(name for path in shards for name in _ids(path) if hash(name) == repeated[0])


def came_again(hashes: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Hashes that came before, once for each time that they came again."""
    ordered = np.sort(np.concatenate([np.zeros(0, np.int64), *hashes]))
    return ordered[1:][ordered[1:] == ordered[:-1]]


def _ids(path: Path) -> Iterator[str]:
    pa, pq = import_extra("pyarrow", "bulk"), import_extra("pyarrow.parquet", "bulk")
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["id"], use_threads=False):
                yield from batch.column("id").to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"cannot read {str(path)!r} ({error}): it was changed; put it back, or begin in another folder"
        ) from error
