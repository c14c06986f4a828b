"""Indexes to search, wherever they are: bulk folders, recordings, bundles, Qdrant and Milvus collections.

What is read into memory is searched exactly. A collection is searched by its own engine, graph and all, because that is
what its users get.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3_bench.documents import Ranked
from m3_bench.recording import Recording, digest_of, read_recording
from m3_bench.retrieval import search
from m3_bench.retrieval.hybrids import PUBLISHED, FloatArray, possible
from m3_bench.retrieval.search import Indices, Ranking
from m3_bench.retrieval.vectors import TextEncoder, TextVectors
from m3_export.verify.parity import Outputs
from m3_runtime import M3Encoder
from m3_runtime.bulk.folder import JOURNAL, VECTORS
from m3_runtime.bulk.journal import read_journal
from m3_runtime.bundle.manifest import MANIFEST_NAME, Head
from m3_runtime.bundle.space import full_space_of, space_on_axes
from m3_runtime.encode.colbert import ColbertDtype, PackedRows
from m3_runtime.errors import InputError, M3Error, SpaceMismatchError
from m3_runtime.extras import import_extra
from m3_runtime.io.progress import Progress

RECORDED = ".safetensors"
"""How the name of a recording ends."""
_CANDIDATES = 100  # dense's best, which ColBERT ranks
_HYBRIDS = (PUBLISHED[0], PUBLISHED[-1])
_STORES = {"qdrant": "QDRANT_API_KEY", "milvus": "MILVUS_TOKEN"}
_PLACES = "qdrant:URL/COLLECTION, milvus:FILE/COLLECTION"


@dataclass(frozen=True, eq=False)
class Queries:
    """Q queries, and what encodes them; where they were recorded, a recorded index gets the recorded vectors."""

    texts: tuple[str, ...]
    encoder: M3Encoder
    recorded: Recording | None
    progress: Progress


@dataclass(frozen=True, eq=False)
class Index(ABC):
    """What can be searched: its name for tables, its vectors' space, and how many documents it has."""

    name: str
    space_id: str
    documents: int

    @property
    def ids_sha256(self) -> str:
        """Digest of the documents' ids in ascending order; "" where they are not known."""
        return ""

    @abstractmethod
    def ranked(self, queries: Queries, depth: int) -> tuple[Ranked, ...]:
        """The best `depth` documents of each query, by every method that the index has."""


@dataclass(frozen=True, eq=False)
class HeldIndex(Index):
    """N documents in memory, in the order of their ids, so that ties go to the same document everywhere.

    `colbert_rows` gives index and rows (L, C) of the wanted documents, in any order.
    """

    ids: tuple[str, ...]  # (N,) ascending
    vectors: TextVectors
    colbert_rows: Callable[[Indices], Iterator[tuple[int, NDArray[Any]]]] | None
    is_recorded: bool = False  # recorded queries are searched with their recorded vectors
    colbert_axes: tuple[str, int] | None = None  # SHA-256 of the axes that rows are projected on, and how many

    @property
    def ids_sha256(self) -> str:
        """See `Index`."""
        return digest_of(self.ids)

    def ranked(self, queries: Queries, depth: int) -> tuple[Ranked, ...]:
        """See `Index.ranked`."""
        recorded = queries.recorded.outputs if self.is_recorded and queries.recorded else None
        encoder = TextEncoder(queries.encoder, None, queries.progress)
        if recorded:
            numbers = [str(number) for number in range(len(queries.texts))]
            asked = _of_outputs(recorded, queries.encoder, "the recorded queries", numbers)
        else:
            asked = encoder.vectors(queries.texts, "queries")
        heads = [Head.DENSE, *([Head.SPARSE] if self.vectors.sparse is not None else [])]
        heads += [Head.COLBERT] if self.colbert_rows else []
        hybrids = possible(_HYBRIDS, heads)
        stage = search.first_stage(asked, self.vectors, hybrids, _CANDIDATES)
        rankings: dict[str, Ranking] = dict(stage.ranked)
        found = enumerate(indices[:depth] for indices in rankings[Head.DENSE.value])
        scores = {Head.DENSE.value: [self.vectors.dense[some] @ asked.dense[q] for q, some in found]}
        if (sparse := self.vectors.sparse) is not None:
            found = enumerate(indices[:depth] for indices in rankings[Head.SPARSE.value])
            scores[Head.SPARSE.value] = [(sparse[some] @ asked.sparse[q].T).toarray()[:, 0] for q, some in found]
        if self.colbert_rows:
            dim = self._dim(queries.encoder)
            rows = (
                recorded.colbert if recorded else [*encoder.colbert_rows(queries.texts, "queries' ColBERT rows", dim)]
            )
            candidates = [left.indices for left in stage.candidates]
            colbert = search.colbert_scores(rows or (), candidates, self.colbert_rows(stage.wanted))
            rankings |= search.second_stage(stage, colbert, hybrids)
            scores[Head.COLBERT.value] = [np.sort(of_query)[::-1][:depth] for of_query in colbert]
        return tuple(self._named(method, ranking, scores.get(method), depth) for method, ranking in rankings.items())

    def _dim(self, encoder: M3Encoder) -> int | None:
        """The dimensions that queries need.

        Raises:
            InputError: the encoder's bundle has none, or no axes.
            SpaceMismatchError: it has other axes.
        """
        if self.colbert_axes is None:
            return None
        sha256, dim = self.colbert_axes
        space, own = space_on_axes(self.space_id, dim, sha256), encoder.colbert_space_id(dim)
        if full_space_of(space) != full_space_of(own):
            raise SpaceMismatchError(
                f"{self.name} has ColBERT rows of the space {space}, the bundle gives rows of the space {own}, which "
                "are on other principal axes; give the bundle that made it"
            )
        return dim

    def _named(self, method: str, ranking: Ranking, scores: Sequence[FloatArray] | None, depth: int) -> Ranked:
        ids = tuple(tuple(self.ids[i] for i in found[:depth].tolist()) for found in ranking)
        values = tuple(tuple(np.round(row, 6).tolist()) for row in scores) if scores is not None else ()
        return Ranked(method, ids, values)


@dataclass(frozen=True, eq=False)
class StoredIndex(Index):
    """A collection of `QdrantIndex` or `MilvusIndex`; `find` is its search, giving ids and scores."""

    find: Callable[[str, str, int], Sequence[tuple[str, float]]]

    def ranked(self, queries: Queries, depth: int) -> tuple[Ranked, ...]:
        """See `Index.ranked`."""
        found = []
        for mode in ("dense", "sparse", "hybrid", "reranked"):
            bar = queries.progress.bar(queries.texts, f"{self.name}, {mode}", "query")
            with _reaching(*self.name.split(":", 1)):
                rows = [self.find(text, mode, depth) for text in bar]
            ids = tuple(tuple(name for name, _ in row) for row in rows)
            found.append(Ranked(mode, ids, tuple(tuple(round(score, 6) for _, score in row) for row in rows)))
        return tuple(found)


def open_index(place: str, encoder: M3Encoder, other: str | None, progress: Progress) -> Index:
    """Open a folder of `m3-runtime bulk`, a recording, a collection, or a bundle, which encodes `other`'s texts.

    Raises:
        InputError: there is no such index, it is not finished, ids come twice, or its vectors are of another
            checkpoint than the bundle's, or not the bundle's kind.
        DocumentError: a recording cannot be read.
    """
    kind, _, address = place.partition(":")
    if kind in _STORES and address:
        return _collection(kind, address, encoder)
    path = Path(place)
    if place.endswith(RECORDED) and path.is_file():
        return _checked(_recorded(path.name, _recording_of(place, encoder), encoder), encoder)
    if (path / JOURNAL).is_file():
        index = _bulk(path)
        check_checkpoint(place, index.space_id, encoder)
        return _checked(index, encoder)
    if (path / MANIFEST_NAME).is_file():
        if other is None or not other.endswith(RECORDED):
            raise InputError(
                f"{place!r} is a bundle; give a recording (m3-bench record) beside it, whose texts it encodes"
            )
        return _encoded(path.resolve().name, encoder, _recording_of(other, encoder), progress)
    raise InputError(
        f"{place!r} is not an index: expected a folder of m3-runtime bulk, FILE{RECORDED}, a bundle, {_PLACES}"
    )


def check_checkpoint(place: str, space_id: str, encoder: M3Encoder) -> None:
    """Refuse vectors of another checkpoint; those of fewer pieces are the bundle's, for what they cost is measured.

    Raises:
        InputError: they are.
    """
    if full_space_of(space_id) != full_space_of(encoder.space_id):
        raise InputError(
            f"{place!r} was made from another checkpoint: it has vectors of the space {space_id}, the bundle gives "
            f"{encoder.space_id}, and they do not compare; give the bundle that was exported from that checkpoint"
        )


def path_of(place: str) -> Path:
    """Where an index lies on this machine, if it does: of a collection the folder or file that its client opens."""
    kind, _, address = place.partition(":")
    is_local = kind in _STORES and "://" not in address
    return Path((address.rpartition("/")[0] if is_local else "") or place)


def _checked(index: HeldIndex, encoder: M3Encoder) -> HeldIndex:
    """The index, whose vectors have been looked at; ColBERT rows are when they are read.

    Raises:
        InputError: vectors are not as wide as the encoder's, or a document's hold NaN or infinity.
    """
    geometry, dense, sparse = encoder.bundle.manifest.geometry, index.vectors.dense, index.vectors.sparse
    widths = {"dense vectors": (dense.shape[1], geometry.hidden_size)}
    widths |= {} if sparse is None else {"lexical weights": (sparse.shape[1], geometry.vocab_size)}
    for what, (found, expected) in widths.items():
        if found != expected:
            raise InputError(
                f"{index.name} has {what} of {found} dimensions, the bundle's have {expected}; give the bundle that "
                "made it, or fill it again"
            )
    _refuse_strange(index.name, "dense vector", index.ids, np.flatnonzero(~np.isfinite(dense).all(axis=1)))
    if (read := index.colbert_rows) is None:
        return index
    width = geometry.colbert_dim if index.colbert_axes is None else index.colbert_axes[1]

    def rows(wanted: Indices) -> Iterator[tuple[int, NDArray[Any]]]:
        for number, found in read(wanted):
            if found.shape[1:] != (width,):
                raise InputError(
                    f"{index.name}: ColBERT rows of document {index.ids[number]!r} have not {width} values, as the "
                    "bundle's; encode it again"
                )
            if not np.isfinite(found).all():
                _refuse_strange(index.name, "ColBERT rows", index.ids, np.array([number]))
            yield number, found

    return replace(index, colbert_rows=rows)


def _refuse_strange(index: str, what: str, ids: Sequence[str], documents: Indices) -> None:
    if documents.size:
        raise InputError(f"{index}: NaN or infinity in the {what} of document {ids[documents[0]]!r}; encode it again")


def _sparse(
    index: str, documents: Sequence[str], starts: Indices, ids: Indices, weights: FloatArray, columns: int
) -> Any:
    """(N, `columns`) CSR of N documents' lexical weights; scipy takes any ids, and reads memory that is not its own.

    Raises:
        InputError: an id is no token's, or a weight is NaN or infinite; the document is named.
    """
    from scipy.sparse import csr_matrix

    of = np.repeat(np.arange(len(documents)), np.diff(starts))
    _refuse_strange(index, "lexical weights", documents, of[~np.isfinite(weights)])
    if (strangers := np.flatnonzero((ids < 0) | (ids >= columns))).size:
        raise InputError(
            f"{index}: the lexical weights of document {documents[of[strangers[0]]]!r} have the token id "
            f"{ids[strangers[0]]}, and ids go from 0 to {columns - 1}; encode it again"
        )
    return csr_matrix((weights, ids, starts), shape=(len(documents), columns))


def _recording_of(place: str, encoder: M3Encoder) -> Recording:
    """A recording of the bundle's checkpoint, its texts in the order of their ids, which are numbers if it has none."""
    recording = read_recording(Path(place))
    check_checkpoint(place, recording.run.model.space_id, encoder)
    if not recording.ids:
        return replace(recording, ids=tuple(f"{number:09d}" for number in range(len(recording.texts))))
    order, found = sorted(range(len(recording.ids)), key=recording.ids.__getitem__), recording.outputs
    texts, ids = (tuple(values[i] for i in order) for values in (recording.texts, recording.ids))
    _refuse_twice(place, ids)
    lexical = None if found.lexical is None else [found.lexical[i] for i in order]
    colbert = None if found.colbert is None else [found.colbert[i] for i in order]
    return Recording(recording.run, texts, Outputs(found.dense[order], lexical, colbert), ids)


def _refuse_twice(place: str, ascending: Sequence[str]) -> None:
    if (twice := next((a for a, b in pairwise(ascending) if a == b), None)) is not None:
        raise InputError(f"{place!r} has the id {twice!r} twice; rankings would not say which is meant")


def _encoded(name: str, encoder: M3Encoder, recording: Recording, progress: Progress) -> HeldIndex:
    texts, ids = TextEncoder(encoder, None, progress), recording.ids

    def rows(wanted: Indices) -> Iterator[tuple[int, NDArray[Any]]]:
        chosen = wanted.tolist()
        return zip(chosen, texts.colbert_rows([recording.texts[n] for n in chosen], "candidates"), strict=True)

    vectors = texts.vectors(recording.texts, "documents")
    has_rows = Head.COLBERT in texts.heads
    name = f"{name}, {encoder.variant.name}"
    return HeldIndex(name, encoder.space_id, len(ids), ids, vectors, rows if has_rows else None)


def _recorded(name: str, recording: Recording, encoder: M3Encoder) -> HeldIndex:
    ids, kept = recording.ids, recording.outputs.colbert

    def rows(wanted: Indices) -> Iterator[tuple[int, NDArray[Any]]]:
        return ((index, kept[index]) for index in wanted.tolist()) if kept else iter(())

    vectors, space_id = _of_outputs(recording.outputs, encoder, name, ids), recording.run.model.space_id
    return HeldIndex(name, space_id, len(ids), ids, vectors, rows if kept else None, is_recorded=True)


def _of_outputs(outputs: Outputs, encoder: M3Encoder, name: str, texts: Sequence[str]) -> TextVectors:
    """The vectors as they are searched; `texts` are what errors call them."""
    sparse = None
    if outputs.lexical is not None:
        ids = np.array([token for row in outputs.lexical for token in row], np.int64)
        starts = np.cumsum([0, *map(len, outputs.lexical)])
        weights = np.array([weight for row in outputs.lexical for weight in row.values()], np.float32)
        columns = encoder.bundle.manifest.geometry.vocab_size
        sparse = _sparse(name, texts, starts, ids, weights, columns)
    return TextVectors(outputs.dense, sparse, 0)


def _bulk(folder: Path) -> HeldIndex:
    parquet = import_extra("pyarrow.parquet", "bulk")
    journal = read_journal((folder / JOURNAL).read_bytes(), str(folder / JOURNAL))
    if journal.complete is None:
        raise InputError(f"{str(folder)!r} is not finished; run its m3-runtime bulk command again")
    if not (expected := sum(entry.rows for entry in journal.shards)):
        raise InputError(f"{str(folder)!r} has no documents; not one row was encoded")
    parts = sorted((folder / VECTORS).glob("part-*.parquet"))
    if not parts:
        raise InputError(f"{str(folder)!r} has no shards in {VECTORS}; put them back")
    try:
        schema = parquet.read_schema(parts[0])
        if "dense_vecs" not in schema.names:
            raise InputError(f"{str(folder)!r} has no dense vectors; encode it with them")
        notes = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
        columns = [name for name in ("id", "dense_vecs", "lexical_weights") if name in schema.names]
        dtype, dim = ColbertDtype(notes.get("m3.colbert_dtype", "float16")), int(notes.get("m3.colbert_dim", 0))
        axes = (notes["m3.colbert_pca"], dim) if notes.get("m3.colbert_pca") else None
        table = parquet.read_table(parts, columns=columns)
        ids, vectors = _bulk_vectors(folder.resolve().name, table, int(notes["m3.vocab_size"]))
        space_id = notes["m3.space_id"]
        if "colbert_vecs" in schema.names and dtype.is_packed != ("colbert_scales" in schema.names):
            raise ValueError(f"{dtype.value} rows and colbert_scales do not fit")
    except (KeyError, ValueError, OSError) as error:  # Arrow's errors are ValueErrors
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(folder)!r}: a shard was changed ({error}); put it back, or encode again") from error
    if len(ids) != expected:
        raise InputError(
            f"{str(folder)!r} has shards of {len(ids)} documents, its journal says {expected}; put them back"
        )
    order = np.argsort(np.array(ids), kind="stable")
    ordered = tuple(ids[i] for i in order.tolist())
    _refuse_twice(str(folder), ordered)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))

    def rows(wanted: Indices) -> Iterator[tuple[int, NDArray[Any]]]:
        return _bulk_rows(parts, place, set(wanted.tolist()), dtype, dim)

    sparse = None if vectors.sparse is None else vectors.sparse[order]
    vectors = replace(vectors, dense=vectors.dense[order], sparse=sparse)
    has_rows = "colbert_vecs" in schema.names
    found = rows if has_rows else None
    return HeldIndex(folder.resolve().name, space_id, len(ids), ordered, vectors, found, colbert_axes=axes)


def _bulk_vectors(name: str, table: Any, columns: int) -> tuple[list[str], TextVectors]:
    documents = table["id"].to_pylist()
    sparse, dense = None, table["dense_vecs"].combine_chunks()
    if "lexical_weights" in table.column_names:
        rows = table["lexical_weights"].combine_chunks()
        starts = np.concatenate([[0], np.cumsum(rows.value_lengths().to_numpy())])
        weights, ids = (rows.flatten().field(part).to_numpy() for part in ("weight", "id"))
        sparse = _sparse(name, documents, starts, ids, weights, columns)
    matrix = dense.flatten().to_numpy().astype(np.float32).reshape(len(dense), -1)
    return documents, TextVectors(matrix, sparse, 0)


def _bulk_rows(
    parts: Sequence[Path], place: Indices, wanted: Set[int], dtype: ColbertDtype, dim: int
) -> Iterator[tuple[int, NDArray[Any]]]:
    """ColBERT rows of wanted documents, read again; `place` is each row's index, in the order of the shards."""
    parquet = import_extra("pyarrow.parquet", "bulk")
    at = 0
    for part in parts:
        names = ["colbert_vecs", "colbert_scales"]
        for batch in parquet.ParquetFile(part).iter_batches(batch_size=256, columns=names):
            for row in range(batch.num_rows):
                if (index := int(place[at + row])) in wanted:
                    values = batch.column("colbert_vecs")[row].values
                    found = values.flatten().to_numpy().reshape(len(values), -1)
                    if dtype.is_packed:
                        scales = batch.column("colbert_scales")[row].values.to_numpy()
                        found = np.asarray(PackedRows(dtype, found, scales, dim or found.shape[1]))
                    yield index, found.astype(np.float32, copy=False)
            at += batch.num_rows


def _collection(kind: str, address: str, encoder: M3Encoder) -> StoredIndex:
    at, _, collection = address.rpartition("/")
    if not at or not collection:
        raise InputError(f"{kind}:{address}: expected {_PLACES}")
    if "://" not in at and not Path(at).exists():  # the clients would make it
        raise InputError(f"{kind}:{address}: there is no {at!r}; expected {_PLACES}")
    if "://" not in at and kind == "qdrant" and not (Path(at) / "meta.json").is_file():
        raise InputError(f"{kind}:{address}: {at!r} is no folder of Qdrant's; expected {_PLACES}")
    with _reaching(kind, address):
        return _opened(kind, at, collection, encoder)


@contextmanager
def _reaching(kind: str, address: str) -> Iterator[None]:
    """What a client raises, in our words: each has a tree of its own, and passes on what its transport raises."""
    try:
        yield
    except (M3Error, ImportError):
        raise
    except Exception as error:
        raise InputError(
            f"{kind}:{address} cannot be searched ({type(error).__name__}: {error}); is the server up, the collection "
            f"there, and {_STORES[kind]} set if it wants a key?"
        ) from error


def _opened(kind: str, at: str, collection: str, encoder: M3Encoder) -> StoredIndex:
    key = os.environ.get(_STORES[kind])
    if kind == "qdrant":
        from qdrant_client import QdrantClient

        from m3_runtime.integrations.qdrant import ID_KEY, QdrantIndex

        # it would compare versions in a thread, and warn where no server is
        remote: dict[str, Any] = {"url": at, "api_key": key, "check_compatibility": False}
        client = QdrantClient(**remote) if "://" in at else QdrantClient(path=at)
        points = QdrantIndex.open(client, collection, encoder)

        def find(text: str, mode: str, depth: int) -> list[tuple[str, float]]:
            hits = points.search(text, limit=depth, mode=mode)
            return [(str((hit.payload or {}).get(ID_KEY, hit.id)), hit.score) for hit in hits]

        count = client.count(collection).count
    else:
        from pymilvus import MilvusClient

        from m3_runtime.integrations.milvus import MilvusIndex

        rows = MilvusClient(at, token=key or "")
        passages = MilvusIndex.open(rows, collection, encoder)

        def find(text: str, mode: str, depth: int) -> list[tuple[str, float]]:
            return [(str(hit.passage.id), hit.score) for hit in passages.search(text, limit=depth, mode=mode)]

        count = int(rows.query(collection, output_fields=["count(*)"])[0]["count(*)"])
    return StoredIndex(f"{kind}:{collection}", encoder.space_id, count, find)
