"""Milvus: pymilvus' `BGEM3EmbeddingFunction` and `BGERerankFunction` over bundles, and a collection for search.

Needs the extra `milvus`. Works with every `MilvusClient`: a file (Milvus Lite) or a server.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import InputError
from m3_runtime.extras import needs_extra
from m3_runtime.flag import BGEM3FlagModel
from m3_runtime.flag_reranker import FlagReranker
from m3_runtime.ignored import Devices
from m3_runtime.integrations.adapters import NEGLIGIBLE_WEIGHT
from m3_runtime.integrations.hits import Hit, RankingStore, weights_of
from m3_runtime.integrations.passages import Added, Mode, Passage, check_collection, check_encoder, why_too_long
from m3_runtime.tokenizer import checked_texts

with needs_extra("pymilvus and scipy", "milvus"):
    from pymilvus import DataType, MilvusClient
    from scipy.sparse import csr_array

__all__ = [
    "Added",
    "BGEM3EmbeddingFunction",
    "BGERerankFunction",
    "CsrRows",
    "Hit",
    "MilvusIndex",
    "Mode",
    "Passage",
    "RerankResult",
]

_NOTE_KEYS = ("m3.space_id", "m3.variant")
_MAX_TEXT_BYTES = 65_535  # of a VARCHAR
_MAX_ID_BYTES = 512


class CsrRows(csr_array):
    """A `csr_array` (S, V) whose rows, one by one or by their number, are (1, V), which is what Milvus takes."""

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(self.shape[0]))

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__([key] if isinstance(key, Integral) else key)


class BGEM3EmbeddingFunction:
    """pymilvus' class of that name: the same calls, the same keys and types, with a bundle's folder as the model.

    >>> function = BGEM3EmbeddingFunction("bge-m3-cpu")  # doctest: +SKIP
    >>> function.encode_documents(["Bees dance."])["sparse"].shape  # doctest: +SKIP
    (1, 250002)

    Attributes:
        model: the `BGEM3FlagModel` that does the work.
    """

    def __init__(
        self,
        model_name: str | Path = "BAAI/bge-m3",
        batch_size: int = 16,
        device: str | None = None,
        normalize_embeddings: bool | None = True,
        use_fp16: bool = False,
        return_dense: bool = True,
        return_sparse: bool = True,
        return_colbert_vecs: bool = False,
        **more: Any,
    ) -> None:
        """Open a bundle. Arguments are pymilvus', with these differences.

        `model_name` is a bundle's folder; nothing is downloaded, so the default works only if that folder is there.
        `device` may name another than the CPU, with a warning. `normalize_embeddings` is what the bundle was exported
        with, or None. `use_fp16` has no effect: the bundle's variant says how vectors are computed. Further arguments
        are those of `BGEM3FlagModel`.

        Raises:
            M3Error: as `BGEM3FlagModel`, whose warnings it gives too.
        """
        devices = more.pop("devices", device)
        self.model = BGEM3FlagModel(model_name, normalize_embeddings, use_fp16, devices=devices, **more)
        self.model_name, self.batch_size, self.device = str(model_name), batch_size, device
        self.normalize_embeddings, self.use_fp16 = normalize_embeddings, use_fp16
        self._heads = (return_dense, return_sparse, return_colbert_vecs)

    @property
    def dim(self) -> dict[str, int | None]:
        """Width of each kind of vector, under "dense", "colbert_vecs" and "sparse"."""
        geometry = self.model.encoder.bundle.manifest.geometry
        return {"dense": geometry.hidden_size, "colbert_vecs": geometry.colbert_dim, "sparse": geometry.vocab_size}

    def __call__(self, texts: str | Sequence[str]) -> dict[str, Any]:
        """As `encode_documents`."""
        return self.encode_documents(texts)

    def encode_queries(self, queries: str | Sequence[str]) -> dict[str, Any]:
        """As `encode_documents`: M3 treats queries and passages alike."""
        return self.encode_documents(queries)

    def encode_documents(self, documents: str | Sequence[str]) -> dict[str, Any]:
        """The vectors of S texts, for the heads that were asked for; a str is a list of one.

        Returns:
            "dense": S arrays (H,); "sparse": `CsrRows` (S, V) of float64; "colbert_vecs": S arrays (L-1, C).

        Raises:
            InputError: a text is not what it must be, or no head is asked for.
        """
        texts = [documents] if isinstance(documents, str) else documents
        found = self.model.encode(texts, self.batch_size, None, *self._heads).logged()
        results: dict[str, Any] = {}
        if found.dense_vecs is not None:
            results["dense"] = list(found.dense_vecs)
        if found.sparse is not None:
            data, ids, starts = found.sparse.to_csr()
            shape = (len(found.sparse), found.sparse.vocab_size)
            results["sparse"] = CsrRows((data.astype("float64"), ids, starts), shape=shape)
        if found.colbert_vecs is not None:
            results["colbert_vecs"] = found.colbert_vecs
        return results


@dataclass(frozen=True)
class RerankResult:
    """pymilvus' class of that name: a document, its score, and its index among the documents."""

    text: str
    score: float
    index: int

    def to_dict(self) -> dict[str, Any]:
        """Its three values."""
        return {"text": self.text, "score": self.score, "index": self.index}


class BGERerankFunction:
    """pymilvus' class of that name: the same calls and results, with a reranker's bundle as the model.

    >>> rerank = BGERerankFunction("bge-reranker-cpu")  # doctest: +SKIP
    >>> rerank("How do bees talk?", ["Bees dance.", "A road."], top_k=1)  # doctest: +SKIP

    Attributes:
        reranker: the `FlagReranker` that does the work.
    """

    def __init__(
        self,
        model_name: str | Path = "BAAI/bge-reranker-v2-m3",
        use_fp16: bool = True,
        batch_size: int = 32,
        normalize: bool = True,
        device: Devices | None = None,
        query_max_length: int | None = 256,
        max_length: int | None = 512,
        **more: Any,
    ) -> None:
        """Open a bundle. Arguments are pymilvus', with these differences.

        `model_name`, `device` and `use_fp16` are as in `BGEM3EmbeddingFunction`. Lengths are in tokens, per query and
        per pair; None as in `FlagReranker`, which has the further arguments.

        Raises:
            M3Error: as `FlagReranker`, whose warnings it gives too.
        """
        lengths: dict[str, Any] = {"query_max_length": query_max_length, "max_length": max_length}
        how: dict[str, Any] = {"batch_size": batch_size, "normalize": normalize, **lengths}
        devices = more.pop("devices", device)
        self.reranker = FlagReranker(model_name, use_fp16, devices=devices, **how, **more)
        self.model_name, self.batch_size = str(model_name), batch_size
        self.normalize, self.device = normalize, device

    def __call__(self, query: str, documents: Sequence[str], top_k: int | None = 5) -> list[RerankResult]:
        """The best documents, the best first; all of them where `top_k` is 0 or None.

        Raises:
            InputError: the query or a document is not what it must be, or empty; it is named by its index.
        """
        texts = checked_texts(documents)
        scores = self.reranker.compute_score([(query, text) for text in texts])
        order = sorted(range(len(texts)), key=lambda i: -scores[i])
        return [RerankResult(texts[i], scores[i], i) for i in order[: top_k or None]]


class MilvusIndex(RankingStore[str]):
    """A collection with the fields id, text, payload (JSON), dense and sparse; ColBERT reorders candidates.

    Milvus keeps no ColBERT rows here: reranking encodes the candidates' texts when it is asked for. Integer ids become
    text. A text without lexical weights (an empty one, say) goes in with a negligible weight of `<pad>`, which no query
    has, since Milvus Lite takes no empty vector. What is too long for a VARCHAR is put aside. `search` takes Milvus'
    filters, as in `payload["lang"] == "zh"`.

    The collection notes which vector space and which variant filled it, and `open` compares.

    >>> index = MilvusIndex.create(MilvusClient("library.db"), "library", encoder)  # doctest: +SKIP
    >>> index.add([Passage("bees", "Bees dance.")])  # doctest: +SKIP
    >>> index.search("How do bees talk?")[0].passage.text  # doctest: +SKIP
    """

    def __init__(self, client: MilvusClient, collection: str, encoder: M3Encoder) -> None:
        """Use `create` or `open`, which look at the collection."""
        super().__init__(encoder, (Head.DENSE, Head.SPARSE))
        self._client, self._collection = client, collection

    @classmethod
    def create(cls, client: MilvusClient, collection: str, encoder: M3Encoder) -> "MilvusIndex":
        """A new, empty collection.

        Raises:
            InputError: there is a collection of this name, or the bundle is a reranker's.
        """
        check_encoder(encoder)
        if client.has_collection(collection):  # creating it again would do nothing, and say nothing
            raise InputError(f"there is a collection {collection!r}; open it, drop it, or choose another name")
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=_MAX_ID_BYTES)
        schema.add_field("text", DataType.VARCHAR, max_length=_MAX_TEXT_BYTES)
        schema.add_field("payload", DataType.JSON)
        schema.add_field("dense", DataType.FLOAT_VECTOR, dim=encoder.bundle.manifest.geometry.hidden_size)
        schema.add_field("sparse", DataType.SPARSE_FLOAT_VECTOR)
        indexes = client.prepare_index_params()
        indexes.add_index("dense", index_type="AUTOINDEX", metric_type="IP")  # lengths are 1: cosine
        indexes.add_index("sparse", index_type="SPARSE_INVERTED_INDEX", metric_type="IP")
        client.create_collection(
            collection,
            schema=schema,
            index_params=indexes,
            consistency_level="Strong",  # what was added is found at once
            properties=dict(zip(_NOTE_KEYS, (encoder.space_id, encoder.variant.name), strict=True)),
        )
        return cls(client, collection, encoder)

    @classmethod
    def open(cls, client: MilvusClient, collection: str, encoder: M3Encoder) -> "MilvusIndex":
        """A collection that `create` made, loaded for searching.

        Raises:
            InputError: there is no such collection, or it does not say which vector space it holds.
            SpaceMismatchError: as `check_space`, whose warnings it gives too.
        """
        if not client.has_collection(collection):
            raise InputError(f"there is no collection {collection!r}; make it with MilvusIndex.create")
        notes = client.describe_collection(collection).get("properties") or {}
        check_collection(collection, notes, encoder, _NOTE_KEYS)
        client.load_collection(collection)
        return cls(client, collection, encoder)

    def _write(self, passages: list[Passage], vectors: Encoding) -> list[list[Passage]]:
        assert vectors.dense_vecs is not None
        rows = []
        for i, passage in enumerate(passages):
            sparse = weights_of(vectors, i) or {self._encoder.tokenizer_info.pad_id: NEGLIGIBLE_WEIGHT}
            row = {"id": str(passage.id), "text": passage.text, "payload": dict(passage.payload)}
            rows.append({**row, "dense": vectors.dense_vecs[i], "sparse": sparse})
        self._client.upsert(self._collection, rows)
        return [passages]

    @staticmethod
    def _why_not(passage: Passage) -> str | None:
        return why_too_long(passage, "Milvus", _MAX_ID_BYTES, _MAX_TEXT_BYTES)

    def _rank(self, question: Encoding, head: Head, most: int, filter: str | None) -> list[Hit]:
        vector = weights_of(question, 0) if head is Head.SPARSE else question["dense_vecs"][0]
        if head is Head.SPARSE and not vector:
            return []
        found = self._client.search(
            self._collection,
            [vector],
            filter=filter or "",
            limit=most,
            output_fields=["id", "text", "payload"],
            search_params={"metric_type": "IP"},
            anns_field=head.value,
        )
        rows = ((row, row["entity"]) for row in found[0])
        return [Hit(Passage(row["id"], e["text"], e["payload"]), float(row["distance"])) for row, e in rows]
