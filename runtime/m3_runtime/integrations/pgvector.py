"""PostgreSQL with pgvector: text, payload, dense vector and lexical weights of a passage in one row.

Needs the extra `pgvector`, which is psycopg 3, and a database with the extension: `CREATE EXTENSION vector`.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from m3_runtime.bundle.manifest import Head
from m3_runtime.encode.encoding import Encoding
from m3_runtime.encoder import M3Encoder
from m3_runtime.errors import HeadError, InputError
from m3_runtime.extras import needs_extra
from m3_runtime.integrations.hits import Hit, RankingStore, weights_of
from m3_runtime.integrations.passages import (
    Added,
    Mode,
    Passage,
    as_json,
    check_collection,
    check_encoder,
    notes_of,
    payload_as_json,
    why_too_long,
)
from m3_runtime.tokenizer import check_text

with needs_extra("psycopg", "pgvector"):
    from psycopg import Connection, Cursor, errors, sql
    from psycopg.pq import TransactionStatus
    from psycopg.rows import tuple_row

__all__ = ["Added", "Hit", "Mode", "Passage", "PgvectorIndex"]

_COLUMNS_KEY = "m3_columns"
_INDEXED_DIMENSIONS = {"halfvec": 4_000, "vector": 2_000}  # most that an HNSW index takes, by pgvector's types
_EF_SEARCH = (40, 1_000)  # pgvector's default of hnsw.ef_search, and the most that it takes
_MAX_ID_BYTES = 2_600  # an entry of a B-tree has 2 704 at most
_MAX_NAME_BYTES = 63  # PostgreSQL cuts longer names without an error


class PgvectorIndex(RankingStore[Mapping[str, Any]]):
    """One table with the columns id, text, payload (jsonb), dense and sparse; ColBERT reorders candidates.

    Dense vectors are `halfvec` in an HNSW index, lexical weights `sparsevec` without one: they are compared one by
    one, exactly. PostgreSQL keeps no ColBERT rows here: reranking encodes the candidates' texts when it is asked for.
    The table's comment notes which vector space and which variant filled it, and `open` compares.

    >>> index = PgvectorIndex.create(psycopg.connect("dbname=library"), "passages", encoder)  # doctest: +SKIP
    >>> index.add([Passage("bees", "Bees dance.")])  # doctest: +SKIP
    >>> index.search("How do bees talk?")[0].passage.text  # doctest: +SKIP
    """

    def __init__(self, connection: Connection[Any], table: str, encoder: M3Encoder, columns: Mapping[str, str]) -> None:
        """Use `create` or `open`, which look at the table."""
        super().__init__(encoder, [head for head in (Head.DENSE, Head.SPARSE) if head.value in columns])
        self._connection = connection
        quoted = sql.Identifier(table).as_string(connection)
        self._table, self._columns = sql.SQL(quoted.replace("%", "%%")), columns  # % is a placeholder there

    @classmethod
    def create(
        cls, connection: Connection[Any], table: str, encoder: M3Encoder, *, sparse: bool = True, index: bool = True
    ) -> "PgvectorIndex":
        """A new, empty table in the first schema of the connection's search path.

        Args:
            connection: an open one with no transaction under way; it stays yours to close.
            table: any name of at most 63 bytes; it is quoted.
            encoder: whose vectors it will hold.
            sparse: keep lexical weights, which needs pgvector 0.7 or newer.
            index: make an HNSW index over the dense vectors; without one they are compared one by one.

        Raises:
            HeadError: the bundle has no sparse head, and `sparse` is true.
            InputError: there is a table of this name, the database has no pgvector or an old one, vectors are too
                wide for an index, or another argument is not what it must be.
        """
        check_encoder(encoder)
        name = sql.Identifier(_checked_name(table))
        with _transaction(connection) as cursor:
            columns = _columns(cursor, encoder, with_sparse=sparse)
            notes = {**notes_of(encoder), _COLUMNS_KEY: columns}
            lines = [sql.SQL("{} {}").format(sql.Identifier(c), sql.SQL(kind)) for c, kind in columns.items()]
            try:
                cursor.execute(
                    sql.SQL("CREATE TABLE {} ({}, PRIMARY KEY (id))").format(name, sql.SQL(", ").join(lines))
                )
            except errors.DuplicateTable as error:
                raise InputError(f"there is a table {table!r}; open it, drop it, or choose another name") from error
            if index:
                _create_index(cursor, name, columns["dense"])
            cursor.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(name, sql.Literal(json.dumps(notes))))
        return cls(connection, table, encoder, columns)

    @classmethod
    def open(cls, connection: Connection[Any], table: str, encoder: M3Encoder) -> "PgvectorIndex":
        """A table that `create` made.

        Raises:
            InputError: there is no such table, it does not say which vector space it holds, or its columns are others.
            SpaceMismatchError: as `check_space`, whose warnings it gives too.
        """
        name = sql.Identifier(_checked_name(table)).as_string(connection)
        with _transaction(connection) as cursor:
            row = cursor.execute(
                "SELECT to_regclass(%s)::oid, obj_description(to_regclass(%s))", (name, name)
            ).fetchone()
            assert row is not None
            oid, comment = row
            if oid is None:
                raise InputError(f"there is no table {table!r}; make it with PgvectorIndex.create")
            found = cursor.execute(
                "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
                " WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped",
                (oid,),
            ).fetchall()
        notes = _notes(comment)
        check_collection(table, notes, encoder)
        columns, there = notes[_COLUMNS_KEY], dict(found)
        for column, kind in columns.items():
            if there.get(column) != kind:
                raise InputError(
                    f"table {table!r}: its column {column!r} was created as {kind} and is {there.get(column, 'gone')}; "
                    "make the table again"
                )
        return cls(connection, table, encoder, columns)

    def _write(self, passages: list[Passage], vectors: Encoding) -> list[list[Passage]]:
        columns = [sql.Identifier(column) for column in self._columns]
        values = [sql.SQL("{}::" + kind).format(sql.Placeholder(column)) for column, kind in self._columns.items()]
        news = [
            sql.SQL("{} = excluded.{}").format(column, column) for column in columns if column.as_string() != '"id"'
        ]
        statement = sql.SQL("INSERT INTO {} ({}) VALUES ({}) ON CONFLICT (id) DO UPDATE SET {}").format(
            self._table, *(sql.SQL(", ").join(parts) for parts in (columns, values, news))
        )
        rows = [
            {"id": str(p.id), "text": p.text, "payload": payload_as_json(p)}
            | {head.value: self._vector(vectors, head, row) for head in self._heads}
            for row, p in enumerate(passages)
        ]
        with _transaction(self._connection) as cursor:
            cursor.executemany(statement, rows)
        return [passages]

    @staticmethod
    def _why_not(passage: Passage) -> str | None:
        payload = payload_as_json(passage)
        found = {"id": "\0" in str(passage.id), "text": "\0" in passage.text, "payload": _has_nul(payload)}
        if name := next((name for name, has_nul in found.items() if has_nul), None):
            return f"its {name} has a NUL character, which PostgreSQL does not hold"
        return why_too_long(passage, "an index of PostgreSQL", _MAX_ID_BYTES)

    def _vector(self, encoding: Encoding, head: Head, row: int) -> str:
        """One vector as pgvector reads it; dimensions of a sparsevec count from 1."""
        if head is Head.DENSE:
            assert encoding.dense_vecs is not None
            return str(encoding.dense_vecs[row].tolist())
        weights = sorted(weights_of(encoding, row).items())
        return f"{{{','.join(f'{token + 1}:{weight}' for token, weight in weights)}}}/{self._encoder.vocab_size}"

    def _rank(self, question: Encoding, head: Head, most: int, filter: Mapping[str, Any] | None) -> list[Hit]:
        contained = as_json(filter or {}, "filter")
        if _has_nul(contained):
            raise InputError("filter has a NUL character, which PostgreSQL does not hold")
        asked = {"vector": self._vector(question, head, 0), "most": most, "payload": contained}
        score = sql.SQL("({} <#> %(vector)s::" + self._columns[head.value] + ")").format(sql.Identifier(head.value))
        wheres: list[sql.Composable] = [sql.SQL("payload @> %(payload)s::jsonb")] if filter else []
        if head is Head.SPARSE:
            wheres.append(sql.SQL("{} < 0").format(score))  # pgvector's product is negative
        least, greatest = _EF_SEARCH
        wide = max(2 * most, least)  # an index gives no more rows than that, and replaced ones among them do not count
        select = sql.SQL("SELECT id, text, payload, -{score} FROM {table}{where} ORDER BY {order} LIMIT %(most)s")
        statement = select.format(
            score=score,
            table=self._table,
            where=sql.Composed([sql.SQL(" WHERE "), sql.SQL(" AND ").join(wheres)] if wheres else []),
            # no index gives a sum, so every row is compared
            order=sql.SQL("{} + 0").format(score) if filter or wide > greatest else score,
        )
        with _transaction(self._connection) as cursor:
            cursor.execute("SELECT set_config('hnsw.ef_search', %s, true)", (str(min(wide, greatest)),))
            cursor.execute(statement, asked)
            return [Hit(Passage(name, text, found), float(score)) for name, text, found, score in cursor]


@contextmanager
def _transaction(connection: Connection[Any]) -> Iterator[Cursor[tuple[Any, ...]]]:
    """A transaction of its own, so that what was written is there when it ends."""
    if connection.closed:
        raise InputError("the connection is closed; connect again, and open the table with the new connection")
    status = connection.info.transaction_status
    if status is not TransactionStatus.IDLE:
        raise InputError(
            f"expected a connection without a transaction, got one that is {status.name}; commit or roll back first, "
            "or connect with autocommit=True"
        )
    with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
        yield cursor


def _columns(cursor: Cursor[Any], encoder: M3Encoder, *, with_sparse: bool) -> dict[str, str]:
    """The columns' types, as PostgreSQL spells them."""
    manifest = encoder.bundle.manifest
    if with_sparse and Head.SPARSE not in manifest.heads:
        raise HeadError("the bundle has no sparse head; create the table with sparse=False")
    cursor.execute(
        "SELECT name, (SELECT extversion FROM pg_extension WHERE extname = 'vector')"
        " FROM unnest(ARRAY['vector', 'halfvec', 'sparsevec']) AS name WHERE to_regtype(name) IS NOT NULL"
    )
    versions = dict(cursor.fetchall())
    if not versions:
        raise InputError(
            "this database has no pgvector in its search path; install it on the server (postgresql-17-pgvector, for "
            "instance), and run CREATE EXTENSION vector in the database"
        )
    if with_sparse and "sparsevec" not in versions:
        raise InputError(
            f"pgvector {versions['vector']} of this database has no sparsevec for lexical weights, expected 0.7 or "
            "newer; update it and run ALTER EXTENSION vector UPDATE, or create the table with sparse=False"
        )
    dense = "halfvec" if "halfvec" in versions else "vector"
    columns = {"id": "text", "text": "text", "payload": "jsonb", "dense": f"{dense}({manifest.geometry.hidden_size})"}
    return columns | ({"sparse": f"sparsevec({encoder.vocab_size})"} if with_sparse else {})


def _create_index(cursor: Cursor[Any], table: sql.Identifier, column: str) -> None:
    kind, _, size = column.removesuffix(")").partition("(")
    most = _INDEXED_DIMENSIONS[kind]
    if int(size) > most:
        raise InputError(
            f"dense vectors have {size} dimensions, pgvector's HNSW index of {kind} holds {most}; create the table "
            "with index=False, and searches compare every row"
        )
    cursor.execute(sql.SQL("CREATE INDEX ON {} USING hnsw (dense " + kind + "_ip_ops)").format(table))


def _notes(comment: str | None) -> dict[str, Any]:
    try:
        notes = json.loads(comment or "{}")
    except ValueError:
        return {}
    columns = notes.get(_COLUMNS_KEY) if isinstance(notes, dict) else None
    return notes if isinstance(columns, dict) and columns.keys() >= {"id", "text", "payload", "dense"} else {}


def _checked_name(table: str) -> str:
    size = len(table.encode("utf-8", "surrogatepass")) if isinstance(table, str) else 0
    if not 0 < size <= _MAX_NAME_BYTES or "\0" in table:
        raise InputError(f"a table's name must be a str of 1 to {_MAX_NAME_BYTES} bytes without NUL, got {table!r}")
    check_text(table, "the table's name")
    return table


def _has_nul(data: str) -> bool:
    """Whether a text in JSON has a NUL character, which is escaped there."""
    return "\\u0000" in data.replace("\\\\", "")  # what remains of a backslash begins an escape
