"""LanceDB: text, payload and all three heads of a passage in one row, from one encode.

Needs the extra `lancedb`.
"""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from m3_runtime.bundle.manifest import ENCODER_HEADS, Head
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import HeadError, InputError
from m3_runtime.extras import needs_extra
from m3_runtime.integrations.hits import Hit, RankingStore
from m3_runtime.integrations.passages import (
    Added,
    Mode,
    Passage,
    check_collection,
    check_encoder,
    notes_of,
    payload_as_json,
)

if TYPE_CHECKING:  # it starts a thread when it is imported; a caller with a database has imported it
    from lancedb.db import DBConnection
    from lancedb.table import Table

with needs_extra("pyarrow, which LanceDB brings", "lancedb"):
    import pyarrow as pa

__all__ = ["Added", "Hit", "LanceIndex", "Mode", "Passage"]

_PASSAGE = ["id", "text", "payload"]
_JSON_INSIDE = pa.large_binary()  # what LanceDB makes of a column of JSON


class LanceIndex(RankingStore[str]):
    """One table with the columns id, text, payload (JSON), dense, token_ids, token_weights and colbert (multivector).

    LanceDB has no sparse vectors. Lexical weights are two lists of a row, and SPARSE reads those of all rows, exactly.
    Integer ids become text. Every 32 passages are a version of the table. After many, `optimize()` of LanceDB's table
    makes it fast again. `search` takes LanceDB's filters, as in `json_get_string(payload, 'lang') = 'zh'`.

    The table's schema notes which vector space and which variant filled it, and `open` compares.

    >>> index = LanceIndex.create(lancedb.connect("library.lance"), "passages", encoder)  # doctest: +SKIP
    >>> index.add([Passage("bees", "Bees dance.")])  # doctest: +SKIP
    >>> index.search("How do bees talk?", mode=Mode.RERANKED)[0].passage.text  # doctest: +SKIP
    """

    candidates = 100

    def __init__(self, table: "Table", encoder: M3Encoder) -> None:
        """Use `create` or `open`, which look at the table."""
        super().__init__(encoder, _heads(with_colbert=Head.COLBERT.value in table.schema.names))
        self._table = table

    @classmethod
    def create(cls, db: "DBConnection", table: str, encoder: M3Encoder, *, colbert: bool = True) -> "LanceIndex":
        """A new, empty table.

        Args:
            db: what `lancedb.connect` gives.
            table: its name.
            encoder: whose vectors it will hold.
            colbert: keep ColBERT rows, 2 bytes for each number; without them RERANKED encodes texts again.

        Raises:
            HeadError: the bundle lacks a head that the table has.
            InputError: there is a table of this name, or LanceDB takes no such name.
        """
        check_encoder(encoder)
        try:
            return cls(db.create_table(table, schema=_schema(encoder, with_colbert=colbert)), encoder)
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"LanceDB cannot create a table {table!r}: {error}") from error

    @classmethod
    def open(cls, db: "DBConnection", table: str, encoder: M3Encoder) -> "LanceIndex":
        """A table that `create` made.

        Raises:
            InputError: there is no such table, it does not say which vector space it holds, or its columns are others.
            SpaceMismatchError: as `check_space`, whose warnings it gives too.
        """
        try:
            opened = db.open_table(table)
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(
                f"LanceDB cannot open a table {table!r}: {error}; make it with LanceIndex.create"
            ) from error
        there = opened.schema
        notes = {key.decode(): value.decode() for key, value in (there.metadata or {}).items()}
        check_collection(table, notes, encoder)
        for field in _schema(encoder, with_colbert=Head.COLBERT.value in there.names):
            found = there.field(field.name).type if field.name in there.names else "gone"
            if found not in (field.type, _JSON_INSIDE):
                raise InputError(
                    f"table {table!r}: its column {field.name!r} was created as {field.type} and is {found}; "
                    "make the table again"
                )
        return cls(opened, encoder)

    def _write(self, passages: list[Passage], vectors: Encoding) -> list[list[Passage]]:
        assert vectors.dense_vecs is not None and vectors.sparse is not None
        starts = pa.array(vectors.sparse.indptr, pa.int32())
        columns: dict[str, Any] = {
            "id": [str(p.id) for p in passages],
            "text": [p.text for p in passages],
            "payload": [payload_as_json(p) for p in passages],
            "dense": _fixed_lists(vectors.dense_vecs),
            "token_ids": pa.ListArray.from_arrays(starts, pa.array(vectors.sparse.ids, pa.int32())),
            "token_weights": pa.ListArray.from_arrays(starts, pa.array(vectors.sparse.weights, pa.float32())),
        }
        if isinstance(vectors.colbert_vecs, list):
            rows = np.concatenate(vectors.colbert_vecs).astype(np.float16)
            starts = np.cumsum([0, *(len(rows) for rows in vectors.colbert_vecs)])
            columns["colbert"] = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), _fixed_lists(rows))
        upsert = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        upsert.execute(pa.table(columns))
        return [passages]

    @staticmethod
    def _why_not(passage: Passage) -> None:
        payload_as_json(passage)

    def _rank(self, question: Encoding, head: Head, most: int, filter: str | None) -> list[Hit]:
        try:
            if head is Head.SPARSE:
                return self._by_weights(question, most, filter)
            vectors = question.dense_vecs if head is Head.DENSE else question.colbert_vecs
            assert vectors is not None
            search = self._table.search(vectors[0], vector_column_name=head.value).distance_type("cosine").limit(most)
            rows = (search.where(filter) if filter else search).select([*_PASSAGE, "_distance"]).to_list()
        except ValueError as error:
            if not filter:
                raise
            raise InputError(f"LanceDB cannot search with the filter {filter!r}: {error}") from error
        count = 1 if head is Head.DENSE else len(vectors[0])
        return [Hit(_passage(row), 1 - row["_distance"] / count) for row in rows]

    def _reranked(self, question: Encoding, hits: list[Hit]) -> list[Hit]:
        if Head.COLBERT not in self._heads or not hits:
            return super()._reranked(question, hits)
        return self._rank(question, Head.COLBERT, len(hits), _is_one_of([hit.passage.id for hit in hits]))

    def _by_weights(self, question: Encoding, most: int, where: str | None) -> list[Hit]:
        """The ranking by lexical weights: those of all rows are read, batch by batch."""
        assert question.sparse is not None
        ids, weights = question.sparse.row(0)
        if not ids.size:
            return []
        by_token = np.zeros(self._encoder.vocab_size, np.float32)
        by_token[ids] = weights
        scores: dict[str, float] = {}
        for batch in self._scan(["id", "token_ids", "token_weights"], where).to_batches():
            found = _products(batch, by_token)
            best = np.argsort(-found, kind="stable")[:most]
            scores |= {batch["id"][int(row)].as_py(): float(found[row]) for row in best if found[row] > 0}
        names = sorted(scores, key=lambda name: -scores[name])[:most]
        passages = {row["id"]: _passage(row) for row in self._scan(_PASSAGE, _is_one_of(names)).to_list()}
        return [Hit(passages[name], scores[name]) for name in names]

    def _scan(self, columns: list[str], where: str | None) -> Any:
        rows = self._table.search().select(columns).limit(None)
        return rows.where(where) if where else rows


def _heads(*, with_colbert: bool) -> list[Head]:
    return list(ENCODER_HEADS) if with_colbert else [Head.DENSE, Head.SPARSE]


def _schema(encoder: M3Encoder, *, with_colbert: bool) -> pa.Schema:
    manifest = encoder.bundle.manifest
    needed = _heads(with_colbert=with_colbert)
    if missing := [head.value for head in needed if head not in manifest.heads]:
        raise HeadError(f"the table has the heads {', '.join(needed)}, the bundle has no {', '.join(missing)} head")
    fields = [pa.field("id", pa.string(), nullable=False), ("text", pa.string()), ("payload", pa.json_())]
    fields += [("dense", pa.list_(pa.float32(), manifest.geometry.hidden_size))]
    fields += [("token_ids", pa.list_(pa.int32())), ("token_weights", pa.list_(pa.float32()))]
    if with_colbert:
        fields += [("colbert", pa.list_(pa.list_(pa.float16(), manifest.geometry.colbert_dim)))]
    return pa.schema(fields, metadata=notes_of(encoder))


def _fixed_lists(rows: NDArray[Any]) -> pa.FixedSizeListArray:
    """(N, D) as N lists of D numbers."""
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def _products(batch: pa.RecordBatch, by_token: NDArray[np.float32]) -> NDArray[np.float64]:
    """Product of each row's lexical weights with the query's, which are given for every token id, (V,)."""
    lengths = batch["token_ids"].value_lengths().to_numpy(zero_copy_only=False)
    products = by_token[batch["token_ids"].flatten().to_numpy()] * batch["token_weights"].flatten().to_numpy()
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    return np.bincount(row_of, weights=products, minlength=len(lengths)).astype(np.float64, copy=False)


def _is_one_of(names: Iterable[int | str]) -> str:
    quoted = ", ".join("'" + str(name).replace("'", "''") + "'" for name in names)
    return f"id IN ({quoted or 'NULL'})"


def _passage(row: dict[str, Any]) -> Passage:
    return Passage(row["id"], row["text"], json.loads(row["payload"]))
