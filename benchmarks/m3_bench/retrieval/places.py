"""Indexes by their places: a folder, a file, a bundle, or a collection of Qdrant or Milvus, which its engine searches.

A collection is searched by its own engine, graph and all, because that is what its users get.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3_bench.documents import Ranked
from m3_bench.retrieval.bulk_index import bulk_index
from m3_bench.retrieval.indexes import (
    RECORDED,
    Index,
    Queries,
    checked_index,
    encoded_index,
    recorded_index,
    recording_of,
)
from m3_runtime import M3Encoder
from m3_runtime.bulk.folder import JOURNAL
from m3_runtime.bundle.manifest import ENCODER_HEADS, MANIFEST_NAME, Head
from m3_runtime.errors import InputError, M3Error
from m3_runtime.io.progress import Progress

_STORES = {"qdrant": "QDRANT_API_KEY", "milvus": "MILVUS_TOKEN"}
_MARKS = {"qdrant": "meta.json", "milvus": "collections"}  # what a store's folder has; Milvus' may be a file
_PLACES = "qdrant:URL/COLLECTION, milvus:FILE/COLLECTION"


class Stores:
    """Clients of Qdrant and Milvus, one for each place: Qdrant lets one alone open a folder. Closed at the end."""

    def __init__(self) -> None:
        self._clients: dict[tuple[str, str], Any] = {}
        self._open = ExitStack()

    def __enter__(self) -> "Stores":
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def client(self, kind: str, at: str) -> Any:
        """The client for a URL, a folder or a file."""
        known = (kind, at if "://" in at else str(Path(at).resolve()))
        if known not in self._clients:
            self._clients[known] = _client(kind, at)
            self._open.callback(self._clients[known].close)
        return self._clients[known]


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


def open_index(place: str, encoder: M3Encoder, other: str | None, stores: Stores, progress: Progress) -> Index:
    """Open a folder of `m3-runtime bulk`, a recording, a collection, or a bundle, which encodes `other`'s texts.

    Raises:
        InputError: there is no such index, it is not finished, ids come twice, or its vectors are of another
            checkpoint than the bundle's, or not the bundle's kind.
        DocumentError: a recording cannot be read.
    """
    kind, _, address = place.partition(":")
    if kind in _STORES and address:
        return _collection(kind, address, encoder, stores)
    path = Path(place)
    if place.endswith(RECORDED) and path.is_file():
        return checked_index(recorded_index(path.name, recording_of(place, encoder), encoder), encoder)
    if (path / JOURNAL).is_file():
        return checked_index(bulk_index(path, encoder), encoder)
    if (path / MANIFEST_NAME).is_file():
        if other is None or not other.endswith(RECORDED):
            raise InputError(
                f"{place!r} is a bundle; give a recording (m3-bench record) beside it, whose texts it encodes"
            )
        return encoded_index(path.resolve().name, encoder, recording_of(other, encoder), progress)
    if not path.exists():
        raise InputError(f"{place!r}: there is no such file or folder")
    raise InputError(
        f"{place!r} is not an index: expected a folder of m3-runtime bulk, FILE{RECORDED}, a bundle, {_PLACES}, or "
        "RANKINGS.json, which this command wrote"
    )


def path_of(place: str) -> Path:
    """Where an index lies on this machine, if it does: of a collection the folder or file that its client opens."""
    kind, _, address = place.partition(":")
    is_local = kind in _STORES and "://" not in address
    return Path((address.rpartition("/")[0] if is_local else "") or place)


def _collection(kind: str, address: str, encoder: M3Encoder, stores: Stores) -> StoredIndex:
    at, _, collection = address.rpartition("/")
    if not at or not collection:
        raise InputError(f"{kind}:{address}: expected {_PLACES}")
    if "://" not in at and not Path(at).exists():  # the clients would make it
        raise InputError(f"{kind}:{address}: there is no {at!r}; expected {_PLACES}")
    is_local = "://" not in at and (kind == "qdrant" or Path(at).is_dir())
    if is_local and not (Path(at) / _MARKS[kind]).exists():  # in an empty one the clients would make theirs
        raise InputError(f"{kind}:{address}: {at!r} is no folder of {kind.capitalize()}'s; expected {_PLACES}")
    with _reaching(kind, address):
        opening = _qdrant if kind == "qdrant" else _milvus
        return opening(stores.client(kind, at), collection, encoder)


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


def _client(kind: str, at: str) -> Any:
    key = os.environ.get(_STORES[kind])
    if kind == "milvus":
        from pymilvus import MilvusClient

        return MilvusClient(at, token=key or "")
    from qdrant_client import QdrantClient

    # it would compare versions in a thread, and warn where no server is
    remote: dict[str, Any] = {"url": at, "api_key": key, "check_compatibility": False}
    return QdrantClient(**remote) if "://" in at else QdrantClient(path=at)


def _qdrant(client: Any, collection: str, encoder: M3Encoder) -> StoredIndex:
    from m3_runtime.integrations.qdrant import ID_KEY, QdrantIndex

    points = QdrantIndex.open(client, collection, encoder)
    _check_vectors(collection, client.get_collection(collection).config.params)

    def find(text: str, mode: str, depth: int) -> list[tuple[str, float]]:
        hits = points.search(text, limit=depth, mode=mode)
        return [(str((hit.payload or {}).get(ID_KEY, hit.id)), hit.score) for hit in hits]

    return StoredIndex(f"qdrant:{collection}", encoder.space_id, client.count(collection).count, find)


def _check_vectors(collection: str, params: Any) -> None:
    """Refuse a collection that lacks vectors, or scores dense ones otherwise than the index that it stands beside.

    Raises:
        InputError: it does.
    """
    vectors = params.vectors if isinstance(params.vectors, dict) else {}
    has = {*vectors, *(params.sparse_vectors or {})}
    if missing := [head.value for head in ENCODER_HEADS if head.value not in has]:
        raise InputError(
            f"collection {collection!r} has no vectors called {', '.join(missing)}; expected those that "
            "`QdrantIndex.create` makes: fill such a collection, or compare the vectors: m3-bench record"
        )
    if (metric := vectors[Head.DENSE.value].distance.value) not in ("Cosine", "Dot"):
        raise InputError(
            f"collection {collection!r} scores dense vectors by {metric}; expected Cosine or Dot, as in every other "
            "index: fill a collection that `QdrantIndex.create` makes"
        )


def _milvus(client: Any, collection: str, encoder: M3Encoder) -> StoredIndex:
    from m3_runtime.integrations.milvus import MilvusIndex

    passages = MilvusIndex.open(client, collection, encoder)

    def find(text: str, mode: str, depth: int) -> list[tuple[str, float]]:
        return [(str(hit.passage.id), hit.score) for hit in passages.search(text, limit=depth, mode=mode)]

    count = int(client.query(collection, output_fields=["count(*)"])[0]["count(*)"])
    return StoredIndex(f"milvus:{collection}", encoder.space_id, count, find)
