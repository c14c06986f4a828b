"""Vectors as Arrow tables: the columns of a shard, and what its metadata says."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bulk.arrow import arrow
from m3_runtime.bulk.colbert import pooled, to_int8
from m3_runtime.bulk.job import ColbertDtype, DenseDtype, Job, VectorSettings
from m3_runtime.bundle.manifest import Geometry, Head
from m3_runtime.encode.encoding import Encoding
from m3_runtime.version import __version__

COMPRESSION = {"id": "zstd", "tokens": "zstd", "lexical_weights.list.element.id": "zstd"}
"""By column; vectors are noise to a compressor."""


def shard_schema(job: Job, geometry: Geometry) -> Any:
    """The columns of a job's shards, one set for each head, in the order of `Head`.

    Args:
        job: its heads and types.
        geometry: H, C and V of the bundle.

    Returns:
        A pyarrow schema.
    """
    pa, settings = arrow(), job.vectors
    columns = [("id", pa.string()), ("tokens", pa.int32())]
    if Head.DENSE in settings.heads:
        kind = pa.float16() if settings.dense_dtype is DenseDtype.FLOAT16 else pa.float32()
        columns.append(("dense_vecs", pa.list_(kind, geometry.hidden_size)))
    if Head.SPARSE in settings.heads:
        columns.append(("lexical_weights", pa.list_(_lexical_struct())))
    if Head.COLBERT in settings.heads:
        is_int8 = settings.colbert_dtype is ColbertDtype.INT8
        rows = pa.list_(pa.int8() if is_int8 else pa.float16(), geometry.colbert_dim)
        columns.append(("colbert_vecs", pa.list_(rows)))
        if is_int8:
            columns.append(("colbert_scales", pa.list_(pa.float32())))
    return pa.schema([pa.field(*column, nullable=False) for column in columns], _metadata(job, geometry))


def step_table(ids: Sequence[str], encoding: Encoding, settings: VectorSettings, schema: Any) -> Any:
    """A table of S texts.

    Args:
        ids: S of them.
        encoding: of a list of S texts, with the heads of `settings`.
        settings: types and pooling.
        schema: of `shard_schema`.
    """
    pa = arrow()
    columns = [pa.array(ids, pa.string()), pa.array(encoding.token_counts, pa.int32())]
    if encoding.dense_vecs is not None:
        dense = encoding.dense_vecs.astype(settings.dense_dtype.value, copy=False)
        columns.append(_fixed_rows(dense))
    if encoding.sparse is not None:
        sparse = encoding.sparse
        pairs = [pa.array(sparse.ids, pa.int32()), pa.array(sparse.weights)]
        entries = pa.StructArray.from_arrays(pairs, fields=list(_lexical_struct()))
        columns.append(pa.ListArray.from_arrays(sparse.indptr.astype(np.int32), entries))
    if encoding.colbert_vecs is not None:
        assert isinstance(encoding.colbert_vecs, list)
        columns += _colbert_columns(encoding.colbert_vecs, settings)
    return pa.table(columns, schema=schema)


def _colbert_columns(colbert_vecs: Sequence[NDArray[Any]], settings: VectorSettings) -> list[Any]:
    pa = arrow()
    texts = [pooled(rows, settings.colbert_pool) for rows in colbert_vecs]
    starts = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    rows = np.concatenate(texts)
    if settings.colbert_dtype is ColbertDtype.FLOAT16:
        return [pa.ListArray.from_arrays(starts, _fixed_rows(rows.astype(np.float16, copy=False)))]
    small = to_int8(rows)
    vectors = pa.ListArray.from_arrays(starts, _fixed_rows(small.values))
    return [vectors, pa.ListArray.from_arrays(starts, pa.array(small.scales))]


def _fixed_rows(rows: NDArray[Any]) -> Any:
    """(S, H) values as S lists of H."""
    pa = arrow()
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def _lexical_struct() -> Any:
    pa = arrow()
    return pa.struct([pa.field("id", pa.int32()), pa.field("weight", pa.float32())])


def _metadata(job: Job, geometry: Geometry) -> dict[str, str]:
    """What a reader must know to compare these vectors with others."""
    settings = job.vectors
    said = {
        "m3.space_id": job.space_id,
        "m3.variant": job.variant,
        "m3.max_length": str(settings.max_length),
        "m3.vocab_size": str(geometry.vocab_size),
        "m3.runtime_version": __version__,
    }
    if Head.COLBERT in settings.heads:
        said |= {"m3.colbert_dtype": settings.colbert_dtype.value, "m3.colbert_pool": str(settings.colbert_pool)}
    return said
