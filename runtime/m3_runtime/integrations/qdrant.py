"""Qdrant: dense, sparse and ColBERT of a text in one point, from one encode; hybrid search by Qdrant's own Query API.

Needs the extra `qdrant`. Works with every `QdrantClient`: in memory, in a folder, or a server.
"""

from collections.abc import Iterable, Iterator
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from m3_runtime.bundle.manifest import ENCODER_HEADS, Head
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import ExtraNotInstalledError, HeadError, InputError
from m3_runtime.integrations.passages import (
    STEP_PASSAGES,
    Added,
    Mode,
    Passage,
    add_in_steps,
    check_collection,
    check_counts,
    check_encoder,
    checked_mode,
)
from m3_runtime.splitting import RunLimit, greedy_runs

try:
    from qdrant_client import QdrantClient, models
except ImportError as error:
    raise ExtraNotInstalledError('this needs qdrant-client; pip install "m3-runtime[qdrant]"') from error

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
_SPACE_KEY, _VARIANT_KEY = "m3_space_id", "m3_variant"
_UPSERT_NUMBERS = 1_000_000  # of a request's ColBERT rows, about 20 bytes each in JSON: servers refuse above 32 MiB


class QdrantIndex:
    """One collection with three named vectors a point: "dense", "sparse" and "colbert".

    The collection notes which vector space and which variant filled it, and `open` compares.

    >>> index = QdrantIndex.create(QdrantClient(":memory:"), "library", encoder)  # doctest: +SKIP
    >>> index.add([Passage(1, "Bees dance."), Passage(2, "蜜蜂会跳舞。")])  # doctest: +SKIP
    >>> index.search("How do bees talk?", mode=Mode.RERANKED)[0].payload["text"]  # doctest: +SKIP
    """

    def __init__(self, client: QdrantClient, collection: str, encoder: M3Encoder) -> None:
        """Use `create` or `open`, which look at the collection."""
        self._client, self._collection, self._encoder = client, collection, encoder

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
            metadata={_SPACE_KEY: encoder.space_id, _VARIANT_KEY: encoder.variant.name},
        )
        return cls(client, collection, encoder)

    @classmethod
    def open(cls, client: QdrantClient, collection: str, encoder: M3Encoder) -> "QdrantIndex":
        """A collection that `create` made.

        Raises:
            InputError: the collection does not say which vector space it holds.
            SpaceMismatchError: it was filled from another vector space.
            ValueError: Qdrant has no such collection.

        Warns:
            VariantDriftWarning: the same space, computed by another variant.
        """
        notes = client.get_collection(collection).config.metadata or {}
        check_collection(collection, notes, (_SPACE_KEY, _VARIANT_KEY), encoder)
        return cls(client, collection, encoder)

    def add(self, passages: Iterable[Passage], *, max_length: int | None = None) -> Added:
        """Encode and write passages, some at a time; an id that is there is replaced.

        A text id becomes the UUID that `point_id` gives, and the payload has it under `ID_KEY`.

        Args:
            passages: any number of them.
            max_length: tokens per text; None as in `M3Encoder.encode`.

        Raises:
            InputError: a passage is not what it must be, or its payload has another "text" or "passage_id".
            PartlyAddedError: something failed after some passages were written; the same call can be repeated.
        """

        def write(some: list[Passage]) -> Iterator[list[Passage]]:
            points, numbers = self._points(some, max_length)
            for run in greedy_runs(numbers, RunLimit(STEP_PASSAGES, _UPSERT_NUMBERS)):
                self._client.upsert(self._collection, points[run.start : run.stop], wait=True)
                yield some[run.start : run.stop]

        return add_in_steps(passages, write, _check)

    def search(
        self, query: str, *, limit: int = 10, mode: Mode | str = Mode.HYBRID, candidates: int = 100
    ) -> list[models.ScoredPoint]:
        """The best points, best first, with their payload.

        Scores are Qdrant's: cosine (dense), product of weights (sparse), the sum over the query's rows of the best
        product (ColBERT; `M3Encoder.colbert_score` is the mean), summed 1 / rank (hybrid).

        Args:
            query: the question.
            limit: how many points at most.
            mode: how to search.
            candidates: how many points of each ranking HYBRID fuses, and how many RERANKED orders anew.

        Raises:
            InputError: an argument is not what it must be.
        """
        chosen = checked_mode(mode)
        check_counts(limit, candidates)
        question = self._encoder.encode_heads([query], chosen.heads).logged()
        asked = _query(question, chosen, max(limit, candidates))
        return self._client.query_points(self._collection, limit=limit, **asked).points

    def _points(self, passages: list[Passage], max_length: int | None) -> tuple[list[models.PointStruct], list[int]]:
        """The passages' points, and how many numbers of ColBERT each has."""
        texts = [passage.text for passage in passages]
        encoding = self._encoder.encode_heads(texts, set(ENCODER_HEADS), max_length=max_length).logged()
        assert encoding.colbert_vecs is not None
        points = [
            models.PointStruct(id=point_id(passage.id), vector=vectors, payload={**passage.payload, **_ours(passage)})
            for passage, vectors in zip(passages, named_vectors(encoding), strict=True)
        ]
        return points, [rows.size for rows in encoding.colbert_vecs]


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


def _check(passage: Passage) -> None:
    if not isinstance(passage.id, str) and not 0 <= passage.id < 2**64:
        raise InputError(f"passage {passage.id!r}: Qdrant's ids are from 0 to 2^64 - 1; give it a str as id")
    for key, value in _ours(passage).items():
        if passage.payload.get(key, value) != value:
            raise InputError(f"passage {passage.id!r}: its payload has another {key!r}; give that key another name")


def named_vectors(encoding: Encoding) -> Iterator[dict[str, Any]]:
    """Per text what `PointStruct.vector` takes, for points that you make yourself.

    Args:
        encoding: of a list of texts, with all three heads.
    """
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
