"""A folder of `m3-runtime bulk` as an index: its journal says what its shards must be."""

from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_bench.retrieval.indexes import HeldIndex, check_checkpoint, refuse_twice, sparse_rows
from m3_bench.retrieval.search import Indices
from m3_bench.retrieval.vectors import TextVectors
from m3_runtime import M3Encoder
from m3_runtime.bulk.folder import JOURNAL, VECTORS
from m3_runtime.bulk.job import BulkJob, VectorSettings
from m3_runtime.bulk.journal import read_journal
from m3_runtime.bulk.shards import shard_schema
from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.colbert import PackedRows
from m3_runtime.errors import InputError
from m3_runtime.extras import import_extra

_OF_OTHER_RELEASES = "m3.colbert_"
"""Begins the notes that shards of earlier releases may lack."""


def bulk_index(folder: Path, encoder: M3Encoder) -> HeldIndex:
    """A finished folder: dense and lexical vectors in memory, ColBERT rows where they lie.

    Raises:
        InputError: the folder is not finished, of another checkpoint or with heads that the bundle lacks, ids come
            twice, or a shard is missing or was changed.
    """
    parquet = import_extra("pyarrow.parquet", "bulk")
    journal = read_journal((folder / JOURNAL).read_bytes(), str(folder / JOURNAL))
    if journal.complete is None or journal.job is None:
        raise InputError(f"{str(folder)!r} is not finished; run its m3-runtime bulk command again")
    job, expected = journal.job, sum(entry.rows for entry in journal.shards)
    check_checkpoint(str(folder), job.space_id, encoder)
    _check_heads(folder, job, encoder)
    if not expected:
        raise InputError(f"{str(folder)!r} has no documents; not one row was encoded")
    parts = sorted((folder / VECTORS).glob("part-*.parquet"))
    if not parts:
        raise InputError(f"{str(folder)!r} has no shards in {VECTORS}; put them back")
    with _as_written(folder):
        _check_schemas(parts, shard_schema(job, encoder.bundle.manifest.geometry))
        columns = ["id", "dense_vecs", *(["lexical_weights"] if Head.SPARSE in job.vectors.heads else [])]
        table = parquet.read_table(parts, columns=columns, page_checksum_verification=True)
    name, vocab_size = folder.resolve().name, encoder.bundle.manifest.geometry.vocab_size
    ids, vectors = _vectors(name, table, vocab_size)
    if len(ids) != expected:
        raise InputError(
            f"{str(folder)!r} has shards of {len(ids)} documents, its journal says {expected}; put them back"
        )
    order = np.array(sorted(range(len(ids)), key=ids.__getitem__))
    ordered = tuple(ids[i] for i in order.tolist())
    refuse_twice(str(folder), ordered)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))

    def rows(wanted: Indices) -> Iterator[tuple[int, NDArray[Any]]]:
        with _as_written(folder):
            yield from _colbert_rows(parts, place, set(wanted.tolist()), job.vectors)

    sparse = None if vectors.sparse is None else vectors.sparse[order]
    return HeldIndex(
        name=name,
        space_id=job.space_id,
        documents=len(ids),
        ids=ordered,
        vectors=TextVectors(vectors.dense[order], sparse, 0),
        colbert_rows=rows if Head.COLBERT in job.vectors.heads else None,
        colbert_axes=None if job.vectors.colbert_dim is None else (job.vectors.colbert_pca, job.vectors.colbert_dim),
    )


@contextmanager
def _as_written(folder: Path) -> Iterator[None]:
    """Say whose shards cannot be read, or are not what the journal says.

    Raises:
        InputError: they are not.
    """
    try:
        yield
    except (ValueError, OSError) as error:  # Arrow's errors are ValueErrors, and OSErrors for damaged pages
        raise InputError(f"{str(folder)!r}: a shard was changed ({error}); put it back, or encode again") from error


def _check_heads(folder: Path, job: BulkJob, encoder: M3Encoder) -> None:
    if Head.DENSE not in job.vectors.heads:
        raise InputError(f"{str(folder)!r} has no dense vectors; encode it with them")
    if missing := [head.value for head in job.vectors.heads if head not in encoder.bundle.manifest.heads]:
        raise InputError(
            f"{str(folder)!r} has vectors of heads that the bundle lacks, {', '.join(missing)}; give the bundle that "
            "made it"
        )


def _check_schemas(parts: Sequence[Path], expected: Any) -> None:
    """See that every shard has the job's columns and notes: one put there from elsewhere would be searched as ours.

    Raises:
        ValueError: one has not; the file and what differs are named.
    """
    parquet = import_extra("pyarrow.parquet", "bulk")
    for part in parts:
        found = parquet.read_schema(part)
        if found.names != expected.names:
            raise ValueError(f"{part.name} has the columns {', '.join(found.names)}, not {', '.join(expected.names)}")
        for one, wanted in zip(found, expected, strict=True):
            if not one.equals(wanted):
                raise ValueError(f"{part.name}: the column {_kind(one)}, expected {wanted.type}")
        notes = found.metadata or {}
        for key, value in expected.metadata.items():
            is_free = key == b"m3.runtime_version" or key.startswith(_OF_OTHER_RELEASES.encode())
            if notes.get(key, value if is_free else None) != value and key != b"m3.runtime_version":
                said = notes[key].decode(errors="replace") if key in notes else "missing"
                raise ValueError(f"{part.name}: {key.decode()} is {said}, expected {value.decode()}")


def _kind(field: Any) -> str:
    return f"{field.name} is {field.type}{' or null' if field.nullable else ''}"


def _vectors(name: str, table: Any, columns: int) -> tuple[list[str], TextVectors]:
    documents = table["id"].to_pylist()
    sparse, dense = None, table["dense_vecs"].combine_chunks()
    if "lexical_weights" in table.column_names:
        rows = table["lexical_weights"].combine_chunks()
        starts = np.concatenate([[0], np.cumsum(rows.value_lengths().to_numpy())])
        weights, ids = (rows.flatten().field(part).to_numpy() for part in ("weight", "id"))
        sparse = sparse_rows(name, documents, starts, ids, weights, columns)
    matrix = dense.flatten().to_numpy().astype(np.float32).reshape(len(dense), -1)
    return documents, TextVectors(matrix, sparse, 0)


def _colbert_rows(
    parts: Sequence[Path], place: Indices, wanted: Set[int], settings: VectorSettings
) -> Iterator[tuple[int, NDArray[Any]]]:
    """ColBERT rows of wanted documents, read again; `place` is each row's index, in the order of the shards."""
    parquet = import_extra("pyarrow.parquet", "bulk")
    at, dtype = 0, settings.colbert_dtype
    for part in parts:
        names = ["colbert_vecs", "colbert_scales"]
        file = parquet.ParquetFile(part, page_checksum_verification=True)
        for batch in file.iter_batches(batch_size=256, columns=names):
            for row in range(batch.num_rows):
                if (index := int(place[at + row])) in wanted:
                    values = batch.column("colbert_vecs")[row].values
                    found = values.flatten().to_numpy().reshape(-1, values.type.list_size)
                    if dtype.is_packed:
                        scales = batch.column("colbert_scales")[row].values.to_numpy()
                        dim = settings.colbert_dim or found.shape[1] * 8 // dtype.bits
                        found = np.asarray(PackedRows(dtype, found, scales, dim))
                    yield index, found.astype(np.float32, copy=False)
            at += batch.num_rows
