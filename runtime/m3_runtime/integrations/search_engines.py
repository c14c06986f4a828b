"""Elasticsearch and OpenSearch: what to send them, and what their answers mean. They are sent by their own clients.

Needs no extra. Nothing here opens a connection: mappings, documents and queries are dicts.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import HeadError, InputError
from m3_runtime.integrations.hits import RANK_CONSTANT, Hit, by_colbert, weights_of
from m3_runtime.integrations.passages import (
    Added,
    Mode,
    Passage,
    add_in_steps,
    check_collection,
    check_counts,
    check_encoder,
    checked_passage,
    last_of_each_id,
    notes_of,
    why_too_long,
)
from m3_runtime.sequences import in_order, member

__all__ = ["Added", "ElasticsearchDocuments", "Hit", "Mode", "OpenSearchDocuments", "Passage"]

_MAX_ID_BYTES = 512
_MOST_HITS = 10_000  # index.max_result_window, and the most candidates of a search by vectors
_MOST_CLAUSES = 1_024  # of a boolean query, by default: one for each token id of a sparse query
_LEAST_WEIGHT = 2.0**-126  # features are normal, positive floats
_SOURCE = ["text", "payload"]


class SearchEngineDocuments(ABC):
    """Documents with the fields text, payload, dense and sparse, for an engine on Lucene.

    The mapping's `_meta` notes which vector space and which variant fill the index, and `check` compares. The sparse
    field's features are token ids in decimals, so that no feature has a dot, which field paths do not take. Lucene
    keeps 9 significant bits of a weight, so sparse scores differ from ours by up to 0.4 %.
    """

    def __init__(self, encoder: M3Encoder) -> None:
        """Of an open encoder, which stays yours to close.

        Raises:
            HeadError: the bundle has no sparse head.
            InputError: it is a reranker's.
        """
        check_encoder(encoder)
        if Head.SPARSE not in encoder.bundle.manifest.heads:
            raise HeadError("documents have dense vectors and lexical weights, the bundle has no sparse head")
        self._encoder = encoder

    @abstractmethod
    def _fields(self, dimensions: int) -> dict[str, Any]:
        """Mappings of the fields dense and sparse."""

    @abstractmethod
    def _dense(self, vector: list[float], most: int) -> dict[str, Any]:
        """A search by the dense field, as a body."""

    @abstractmethod
    def _sparse(self, weights: dict[str, float]) -> dict[str, Any]:
        """A query of the sparse field, as a clause."""

    @abstractmethod
    def _fused(self, dense: dict[str, Any], sparse: dict[str, Any], most: int) -> dict[str, Any]:
        """A search by both, fused by ranks, as a body."""

    def index_body(self) -> dict[str, Any]:
        """Settings and mappings to create an index with: yours to add to before you do.

        The payload is kept and not searched; give `["mappings"]["properties"]["payload"]` a mapping of your own to
        filter by it.
        """
        fields = self._fields(self._encoder.bundle.manifest.geometry.hidden_size)
        properties = {"text": {"type": "text"}, "payload": {"type": "object", "enabled": False}, **fields}
        return {"mappings": {"dynamic": "strict", "_meta": notes_of(self._encoder), "properties": properties}}

    def check(self, mappings: Mapping[str, Any]) -> None:
        """See that an index was made for this encoder: compare the value of "mappings" in the client's `get_mapping`.

        Raises:
            InputError: they do not say which vector space the index holds, or a field is missing or another.
            SpaceMismatchError: as `check_space`, whose warnings it gives too.
        """
        check_collection("mappings", mappings.get("_meta") or {}, self._encoder)
        for name, field in self._fields(self._encoder.bundle.manifest.geometry.hidden_size).items():
            found = mappings.get("properties", {}).get(name, {})
            size = {"dims", "dimension"} & field.keys()
            for key in ("type", *size):
                if found.get(key) != field[key]:
                    got = found.get(key, "nothing")
                    raise InputError(
                        f"the index's field {name!r} has the {key} {got}, expected {field[key]}; create it again"
                    )

    def add(
        self,
        bulk: Callable[[list[dict[str, Any]]], object],
        index: str,
        passages: Iterable[Passage],
        *,
        max_length: int | None = None,
    ) -> Added:
        """Encode passages and write them, some at a time; an id that is there is replaced. Integers become text.

        A text without lexical weights goes in without the sparse field: dense search finds it. An id that is empty or
        has more than 512 bytes is put aside, and the rest goes in. `max_length` is tokens per text, None as in
        `M3Encoder.encode`.

        `bulk` writes actions and raises if one fails, as `functools.partial(helpers.bulk, client)` of either client.

        Raises:
            InputError: a passage is not what it must be.
            PartlyAddedError: something failed after some passages were written; the same call can be repeated.
        """

        def write(some: list[Passage]) -> list[list[Passage]]:
            last = last_of_each_id(some)
            bulk(self.actions(index, last, max_length=max_length))
            return [last]

        return add_in_steps(passages, write, _why_not)

    def actions(
        self, index: str, passages: Iterable[Passage], *, max_length: int | None = None
    ) -> list[dict[str, Any]]:
        """An action for each passage, as both clients' `helpers.bulk` takes it; all are encoded at once. See `add`."""
        some = [checked_passage(passage) for passage in in_order(passages, "expected passages")]
        heads = {Head.DENSE, Head.SPARSE}
        found = self._encoder.encode_heads([passage.text for passage in some], heads, max_length=max_length).logged()
        assert found.dense_vecs is not None
        actions = []
        for row, passage in enumerate(some):
            source = {"text": passage.text, "payload": dict(passage.payload), "dense": found.dense_vecs[row].tolist()}
            sparse = {"sparse": weights} if (weights := _features(found, row)) else {}
            actions.append({"_op_type": "index", "_index": index, "_id": str(passage.id), "_source": source | sparse})
        return actions

    def query_body(
        self, query: str, *, limit: int = 10, mode: Mode | str = Mode.HYBRID, candidates: int = 100
    ) -> dict[str, Any]:
        """A search, for either client's `search(index=…, body=…)`.

        Of a query with more than 1 024 token ids the heaviest count, since a boolean query takes no more. One without
        lexical weights finds nothing by SPARSE, and HYBRID is dense alone. For RERANKED give what HYBRID finds to
        `rerank`. `candidates` are how many of each ranking HYBRID fuses, and how many a shard's search by vectors
        looks at.

        Raises:
            InputError: an argument is not what it must be.
        """
        chosen = member(Mode, mode, "mode")
        check_counts(limit, candidates)
        if Head.COLBERT in chosen.heads:
            raise InputError(f"mode {chosen.value!r}: documents have no ColBERT rows; use mode 'hybrid', then `rerank`")
        if (most := max(limit, candidates)) > _MOST_HITS:
            raise InputError(f"limit and candidates must be at most {_MOST_HITS}, got {limit} and {candidates}")
        found = self._encoder.encode_heads([query], chosen.heads).logged()
        dense = {} if found.dense_vecs is None else self._dense(found.dense_vecs[0].tolist(), most)
        weights = {} if found.sparse is None else _features(found, 0)
        sparse = self._sparse(dict(sorted(weights.items(), key=lambda item: -item[1])[:_MOST_CLAUSES]))
        if chosen is Mode.SPARSE:
            body = {"query": sparse if weights else {"match_none": {}}}
        else:
            body = self._fused(dense, sparse, most) if weights else dense
        return {"size": limit, "_source": _SOURCE, **body}

    def hits(self, response: Mapping[str, Any]) -> list[Hit]:
        """What a search found, from the client's response."""
        rows = response["hits"]["hits"]
        return [Hit(Passage(r["_id"], r["_source"]["text"], r["_source"]["payload"]), float(r["_score"])) for r in rows]

    def rerank(self, query: str, hits: Iterable[Hit]) -> list[Hit]:
        """Hits in ColBERT's order and with its scores; their texts are encoded again.

        Raises:
            HeadError: the bundle has no ColBERT head.
        """
        return by_colbert(self._encoder, self._encoder.encode_heads([query], {Head.COLBERT}), list(hits))


class ElasticsearchDocuments(SearchEngineDocuments):
    """For Elasticsearch 8.15 and newer: `dense_vector` and `sparse_vector`, fused by the retriever `rrf`."""

    def _fields(self, dimensions: int) -> dict[str, Any]:
        # without index_options, Elasticsearch keeps a bit for each dimension, from 384 dimensions on
        dense = {"type": "dense_vector", "dims": dimensions, "similarity": "cosine", "index_options": {"type": "hnsw"}}
        return {"dense": {**dense, "index": True}, "sparse": {"type": "sparse_vector"}}

    def _dense(self, vector: list[float], most: int) -> dict[str, Any]:
        return {"knn": {"field": "dense", "query_vector": vector, "k": most, "num_candidates": most}}

    def _sparse(self, weights: dict[str, float]) -> dict[str, Any]:
        # with the default, tokens that are frequent and light count for nothing: it was measured on another model
        return {"sparse_vector": {"field": "sparse", "query_vector": weights, "prune": False}}

    def _fused(self, dense: dict[str, Any], sparse: dict[str, Any], most: int) -> dict[str, Any]:
        rankings = [dense, {"standard": {"query": sparse}}]
        rrf = {"retrievers": rankings, "rank_constant": RANK_CONSTANT, "rank_window_size": most}
        return {"retriever": {"rrf": rrf}}


class OpenSearchDocuments(SearchEngineDocuments):
    """For OpenSearch 2.19 and newer: `knn_vector` and `rank_features`, fused by its `score-ranker-processor`."""

    def index_body(self) -> dict[str, Any]:
        """As for every engine, with the setting that vectors need."""
        return {"settings": {"index": {"knn": True}}, **super().index_body()}

    def _fields(self, dimensions: int) -> dict[str, Any]:
        method = {"name": "hnsw", "engine": "lucene", "space_type": "cosinesimil"}
        dense = {"type": "knn_vector", "dimension": dimensions, "method": method}
        return {"dense": dense, "sparse": {"type": "rank_features"}}

    def _dense(self, vector: list[float], most: int) -> dict[str, Any]:
        return {"query": {"knn": {"dense": {"vector": vector, "k": most}}}}

    def _sparse(self, weights: dict[str, float]) -> dict[str, Any]:
        return {"neural_sparse": {"sparse": {"query_tokens": weights}}}

    def _fused(self, dense: dict[str, Any], sparse: dict[str, Any], most: int) -> dict[str, Any]:
        processor = {"score-ranker-processor": {"combination": {"technique": "rrf"}}}  # its rank constant is ours, 60
        hybrid = {"queries": [dense["query"], sparse], "pagination_depth": most}
        return {"query": {"hybrid": hybrid}, "search_pipeline": {"phase_results_processors": [processor]}}


def _features(encoding: Encoding, row: int) -> dict[str, float]:
    """One text's lexical weights by token id in decimals, without those that Lucene refuses."""
    return {str(token): weight for token, weight in weights_of(encoding, row).items() if weight >= _LEAST_WEIGHT}


def _why_not(passage: Passage) -> str | None:
    if not str(passage.id):
        return "its id is empty"
    return why_too_long(passage, "Elasticsearch or OpenSearch", _MAX_ID_BYTES)
