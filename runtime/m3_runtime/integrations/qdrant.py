"""Qdrant: dense, sparse and ColBERT of a text in one point, from one encode; hybrid search by Qdrant's own Query API.

Needs the extra `qdrant`. Works with every `QdrantClient`: in memory, in a folder, or a server.
"""

from collections.abc import Iterator
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from m3_runtime.bundle.manifest import ENCODER_HEADS, Head
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import HeadError, InputError
from m3_runtime.extras import needs_extra
from m3_runtime.integrations.passages import (
    STEP_PASSAGES,
    Added,
    Mode,
    Passage,
    PassageStore,
    check_collection,
    check_counts,
    check_encoder,
    notes_of,
)
from m3_runtime.sequences import member
from m3_runtime.splitting import RunLimit, greedy_runs

with needs_extra("qdrant-client", "qdrant"):
    from qdrant_client import QdrantClient, models

__all__ = [
    "ID_KEY",
    "TEXT_KEY",
    "Added",
    "Mode",
    "Passage",
    "QdrantIndex",
    "named_vectors",
    "point_id",
    "sparse_vector",
]

TEXT_KEY = "text"
"""Where a point's payload has the text."""
ID_KEY = "passage_id"
"""Where a point's payload has the passage's own id, if that is not the point's."""
_UPSERT_NUMBERS = 1_000_000  # of a request's ColBERT rows, about 20 bytes each in JSON: servers refuse above 32 MiB


class QdrantIndex(PassageStore):
    """One collection with three named vectors a point: "dense", "sparse" and "colbert".

    A text id becomes the UUID that `point_id` gives, and the payload has it under `ID_KEY`. A payload has no other
    "text" and "passage_id".

    The collection notes which vector space and which variant filled it, and `open` compares.

    >>> index = QdrantIndex.create(QdrantClient(":memory:"), "library", encoder)  # doctest: +SKIP
    >>> index.add([Passage(1, "Bees dance."), Passage(2, "蜜蜂会跳舞。")])  # doctest: +SKIP
    >>> index.search("How do bees talk?", mode=Mode.RERANKED)[0].payload["text"]  # doctest: +SKIP
    """

    def __init__(self, client: QdrantClient, collection: str, encoder: M3Encoder) -> None:
        """Use `create` or `open`, which look at the collection."""
        super().__init__(encoder, ENCODER_HEADS)
        self._client, self._collection = client, collection

    @classmethod
    def create(cls, client: QdrantClient, collection: str, encoder: M3Encoder) -> "QdrantIndex":
        """A new, empty collection.

        Raises:
            HeadError: the bundle lacks one of the three heads.
            InputError: it is a reranker's.
            ValueError: Qdrant has a collection of this name.
        """
        check_encoder(encoder)
        client.create_collection(
            collection,
            vectors_config=_vectors_config(encoder),
            sparse_vectors_config={Head.SPARSE.value: models.SparseVectorParams()},
            metadata=notes_of(encoder),
        )
        return cls(client, collection, encoder)

    @classmethod
    def open(cls, client: QdrantClient, collection: str, encoder: M3Encoder) -> "QdrantIndex":
        """A collection that `create` made.

        Raises:
            InputError: the collection does not say which vector space it holds.
            SpaceMismatchError: as `check_space`, whose warnings it gives too.
            ValueError: Qdrant has no such collection.
        """
        notes = client.get_collection(collection).config.metadata or {}
        check_collection(collection, notes, encoder)
        return cls(client, collection, encoder)

    def search(
        self, query: str, *, limit: int = 10, mode: Mode | str = Mode.HYBRID, candidates: int = 100
    ) -> list[models.ScoredPoint]:
        """The best points, best first, with their payload.

        Scores are Qdrant's: cosine (dense), product of weights (sparse), the sum over the query's rows of the best
        product (ColBERT; `M3Encoder.colbert_score` is the mean), summed 1 / rank (hybrid). `candidates` are how many
        points of each ranking HYBRID fuses, and how many RERANKED reorders.

        Raises:
            InputError: an argument is not what it must be.
        """
        chosen = member(Mode, mode, "mode")
        check_counts(limit, candidates)
        question = self._encoder.encode_heads([query], chosen.heads).logged()
        asked = _query(question, chosen, max(limit, candidates))
        return self._client.query_points(self._collection, limit=limit, **asked).points

    def _write(self, passages: list[Passage], vectors: Encoding) -> Iterator[list[Passage]]:
        assert vectors.colbert_vecs is not None
        points = [
            models.PointStruct(id=point_id(passage.id), vector=vector, payload={**passage.payload, **_ours(passage)})
            for passage, vector in zip(passages, named_vectors(vectors), strict=True)
        ]
        numbers = [rows.size for rows in vectors.colbert_vecs]
        for run in greedy_runs(numbers, RunLimit(STEP_PASSAGES, _UPSERT_NUMBERS)):
            self._client.upsert(self._collection, points[run.start : run.stop], wait=True)
            yield passages[run.start : run.stop]

    @staticmethod
    def _why_not(passage: Passage) -> None:
        if not isinstance(passage.id, str) and not 0 <= passage.id < 2**64:
            raise InputError(f"passage {passage.id!r}: Qdrant's ids are from 0 to 2^64 - 1; give it a str as id")
        for key, value in _ours(passage).items():
            if passage.payload.get(key, value) != value:
                raise InputError(f"passage {passage.id!r}: its payload has another {key!r}; give that key another name")

    @staticmethod
    def _stored_id(passage_id: int | str) -> int | str:
        return point_id(passage_id)


def point_id(passage_id: int | str) -> int | str:
    """The id of a passage's point: an integer and a UUID stay, another text becomes a UUID of version 5.

    >>> point_id(7), point_id("doc-1")
    (7, '3f622591-baa6-5888-8a4f-6b3813e16a44')
    """
    if not isinstance(passage_id, str):
        return int(passage_id)  # it may be numpy's
    try:
        return str(UUID(passage_id))
    except ValueError:
        return str(uuid5(NAMESPACE_URL, passage_id))


def _ours(passage: Passage) -> dict[str, Any]:
    """What we put into a point's payload."""
    is_named = passage.id == point_id(passage.id)
    return {TEXT_KEY: passage.text} | ({} if is_named else {ID_KEY: passage.id})


def named_vectors(encoding: Encoding) -> Iterator[dict[str, Any]]:
    """What `PointStruct.vector` takes for each of some texts, encoded with all three heads: for points of your own."""
    assert encoding.dense_vecs is not None and encoding.colbert_vecs is not None
    for row, (dense, colbert) in enumerate(zip(encoding.dense_vecs, encoding.colbert_vecs, strict=True)):
        yield {
            Head.DENSE.value: dense.tolist(),
            Head.SPARSE.value: sparse_vector(encoding, row),
            Head.COLBERT.value: colbert.tolist(),
        }


def sparse_vector(encoding: Encoding, row: int) -> models.SparseVector:
    """One text's lexical weights as Qdrant takes them."""
    assert encoding.sparse is not None
    ids, weights = encoding.sparse.row(row)
    return models.SparseVector(indices=ids.tolist(), values=weights.tolist())


def _vectors_config(encoder: M3Encoder) -> dict[str, models.VectorParams]:
    manifest = encoder.bundle.manifest
    missing = [head.value for head in ENCODER_HEADS if head not in manifest.heads]
    rows_of = manifest.geometry.colbert_dim
    if missing or rows_of is None:
        raise HeadError(f"a collection has all three heads, the bundle has no {', '.join(missing)} head")
    return {
        # Lengths are 1 already; cosine rather than the product because LangChain's store expects it.
        Head.DENSE.value: models.VectorParams(size=manifest.geometry.hidden_size, distance=models.Distance.COSINE),
        Head.COLBERT.value: models.VectorParams(
            size=rows_of,
            distance=models.Distance.DOT,
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            hnsw_config=models.HnswConfigDiff(m=0),  # it orders candidates; a graph over every token would be wasted
        ),
    }


def _query(encoding: Encoding, mode: Mode, candidates: int) -> dict[str, Any]:
    """What to ask Qdrant for: arguments of `query_points`."""
    if mode not in (Mode.HYBRID, Mode.RERANKED):
        head = Head(mode.value)
        return {"query": _vector(encoding, head), "using": head.value}
    rankings = [
        models.Prefetch(query=_vector(encoding, head), using=head.value, limit=candidates)
        for head in (Head.DENSE, Head.SPARSE)
    ]
    fusion = models.FusionQuery(fusion=models.Fusion.RRF)
    if mode is Mode.HYBRID:
        return {"query": fusion, "prefetch": rankings}
    fused = models.Prefetch(query=fusion, prefetch=rankings, limit=candidates)
    return {"query": _vector(encoding, Head.COLBERT), "using": Head.COLBERT.value, "prefetch": [fused]}


def _vector(encoding: Encoding, head: Head) -> Any:
    if head is Head.SPARSE:
        return sparse_vector(encoding, 0)
    vectors = encoding.dense_vecs if head is Head.DENSE else encoding.colbert_vecs
    assert vectors is not None
    return vectors[0].tolist()
