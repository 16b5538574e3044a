"""SQL as a source: streamed, cut by a column, without a secret in any message, and never silently another dataset."""

import json
import sqlite3
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maas_ray.data.reading import Part, inspect, read
from maas_ray.data.sources import SqlSource, list_files, sql
from maas_ray.errors import DataError, Problem, SpecError
from tests.support import postgres
from tests.support.errors import raises
from tests.unit.data.sources.test_formats import ROWS, database, everything, looks


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    programs = postgres.programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres.running(programs) as directory:
        yield directory


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql+psycopg://me:hunter2@db/x",
        "postgresql+psycopg://me:hunter2${X}@db/x",
        "mysql://:hunter2/@db",
        "postgresql://db/x?user=me&password=hunter2",
    ],
)
def test_a_plain_password_is_refused_and_not_repeated(uri: str) -> None:
    with raises(SpecError, "plain_password", "uri") as caught:
        SqlSource.parse({"uri": uri, "table": "t"})
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ValueError, match="password") as shown:
        SqlSource(uri=uri, table="t")
    assert "hunter2" not in str(shown.value)


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql+psycopg://me:${PW}@db/x",
        "postgresql+psycopg://me@db/x?password=${PW}",
        "${DATABASE_URL}",
        "sqlite:////tmp/a:b@c.db",
    ],
)
def test_a_password_may_be_a_variable(uri: str) -> None:
    assert SqlSource(uri=uri, table="t").location == f"{uri}#t"


def test_either_a_query_or_a_table_is_required() -> None:
    for given in ({}, {"query": "select 1", "table": "t"}):
        with raises(SpecError, "exclusive_fields", "query, table"):
            SqlSource.parse({"uri": "sqlite://", **given})


def test_the_value_of_a_password_variable_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlalchemy

    monkeypatch.setenv("PW", "p@ss/w:rd%")
    uri, _ = sql._expanded("postgresql+psycopg://me:${PW}@db/x")
    assert sqlalchemy.make_url(uri).password == "p@ss/w:rd%"
    monkeypatch.setenv("URL", "sqlite:////x.db")
    assert sql._expanded("${URL}")[0] == "sqlite:////x.db"
    with raises(DataError, "variable_missing", "NOWHERE"):
        sql._expanded("${NOWHERE}")


def test_the_digest_depends_on_every_value_and_not_on_order(tmp_path: Path) -> None:
    uri = database(tmp_path / "a.db")

    def digest(query: str) -> str:
        (found,) = looks(SqlSource(uri=uri, query=query))
        return found.sha256

    first = digest("select text, label from notes")
    assert digest("select text, label from notes order by text desc") == first
    assert digest("select text, label from notes where id > 1") != first
    assert digest("select text, label from notes union all select text, label from notes where id = 1") != first
    assert digest("select text, case id when 1 then 'x' else label end label from notes") != first
    assert digest("select text, label, 1 as more from notes") != first
    rows = everything(SqlSource(uri=uri, query="select text, label from notes"))
    others = everything(SqlSource(uri=uri, query="select text, label from notes order by text desc"))
    assert {raw.position for raw in rows} == {raw.position for raw in others}
    (found,) = looks(SqlSource(uri=uri, table="notes"))
    assert SqlSource(uri=uri, table="notes").identity() == SqlSource(uri="sqlite://", table="notes").identity()
    assert found.file.relative == "notes"
    assert found.file.size > 1000


@pytest.mark.parametrize("partition", [None, "id"])
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE notes SET text = 'y' WHERE id = 40",
        "DELETE FROM notes WHERE id = 3",
        "INSERT INTO notes (text) VALUES ('new')",
        "INSERT INTO notes (id, text) VALUES (-1, 'new')",
    ],
)
def test_a_table_that_changes_after_its_inspection_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partition: str | None, change: str
) -> None:
    monkeypatch.setattr(sql, "_GROUP_BYTES", 300)
    of = SqlSource(uri=database(tmp_path / "a.db"), table="notes", partition_column=partition)
    (found,) = looks(of)
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute(change)
    connection.close()
    parts = [Part(of, found, range(n, n + 1)) for n in range(len(found.groups))] or [Part(of, found)]
    with raises(DataError, "input_changed"):
        _ = [raw for part in parts for raw in read(part, ("text",))]


@pytest.mark.parametrize(
    ("given", "code", "value"),
    [
        ({"table": "nope"}, "database_failed", "no such table: nope"),
        ({"query": "selekt 1"}, "database_failed", 'near "selekt": syntax error'),
        ({"query": "select text, text from notes"}, "duplicate_column", "'text'"),
        ({"table": "notes", "partition_column": "nr"}, "column_missing", "'nr'"),
        ({"table": "notes", "partition_column": "label"}, "not_an_integer", "label holds 'kind 0'"),
        (
            {"query": "select text, id / 2 as half from notes", "partition_column": "half"},
            "not_unique",
            "partition_column: 1 ",
        ),
    ],
)
def test_errors_of_the_database_are_reported(tmp_path: Path, given: dict[str, Any], code: str, value: str) -> None:
    (inspected,) = looks(SqlSource(uri=database(tmp_path / "a.db"), **given), ("text",))
    assert value in inspected.problem
    assert Problem(inspected.problem).code == code


def test_inspecting_creates_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    of = SqlSource(uri="sqlite:///a.db", table="notes")
    (found,) = looks(of)
    assert Problem(found.problem).code == "database_missing"
    assert not (tmp_path / "a.db").exists()
    database(tmp_path / "a.db")
    (file,) = list_files(of)
    monkeypatch.chdir("/")  # as a worker in another directory
    assert inspect(of, file, ("text",)).rows == len(ROWS)
    (found,) = looks(SqlSource(uri="nosuch://x", table="t"))
    assert "Can't load plugin: sqlalchemy.dialects:nosuch" in found.problem


def test_rows_of_postgresql_are_streamed(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import psycopg

    uri = postgres.new_database(server, "source")
    monkeypatch.setenv("SOURCE_URL", uri)
    monkeypatch.setattr(sql, "_GROUP_BYTES", 1 << 20)
    with psycopg.connect(host=server, user="maas", dbname="source", autocommit=True) as connection:
        connection.execute(  # types that only a real server has
            "CREATE TABLE \"Notes\" AS SELECT n::bigint AS id, n || ' 100% :x ' || repeat('é', 200) AS text, "
            "n * 1.5::numeric AS price, '2026-01-01T00:00+05:30'::timestamptz AS at, jsonb_build_object('a', n) "
            "AS doc, decode('00ff', 'hex') AS image, "
            "gen_random_uuid() AS uid, true AS yes FROM generate_series(1, 10000) n"
        )
    of = SqlSource(uri="${SOURCE_URL}", table="public.Notes", partition_column="id")
    (file,) = list_files(of)
    tracemalloc.start()
    found = inspect(of, file, ("text", "image", "*"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not found.problem
    assert (found.rows, len(found.groups) > 3) == (10_000, True)
    assert peak < 8 << 20
    rows = list(read(Part(of, found, range(2, 3)), ("text", "image", "*")))
    first = rows[0]
    assert first.row is not None
    assert first.row["text"].startswith(f"{first.position} 100% :x é")
    assert first.row["image"] == b"\x00\xff"
    rest = first.row["*"]
    assert (rest["id"], rest["doc"], rest["yes"]) == (first.position, {"a": first.position}, True)
    assert rest["at"].isoformat() == "2025-12-31T18:30:00+00:00"
    assert isinstance(rest["uid"], str)
    query = "SELECT text || ' 50%' AS text, ':y' AS label FROM \"Notes\" WHERE id <= 10"
    assert len(everything(SqlSource(uri="${SOURCE_URL}", query=query))) == 10


def test_no_error_contains_a_secret(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PW", "hunter2 ö")
    for uri in ("postgresql+psycopg://x:${PW}@127.0.0.1:1/x", "postgresql+psycopg://x:${PW}@/none?host=" + server):
        of = SqlSource(uri=uri, table="t")
        (found,) = looks(of)
        assert "cannot be read" in found.problem
        everywhere = json.dumps([of.document(), found.problem, repr(found), repr(list_files(of))])
        assert "hunter2" not in everywhere
        assert "${PW}" in everywhere
