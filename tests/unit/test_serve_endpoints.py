"""The platform's database: nothing lost when several write, or start, at once."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from maas_ray.errors import ConflictError, StorageError
from maas_ray.serve.endpoints import Base, Endpoints, Record, State, _open
from maas_ray.settings import Settings
from tests.unit.test_serve_api import route


def record(name: str, **changes) -> Record:
    fields = {"spec": {"version": "m@champion"}, "version": "m/1", "uri": "/b", "digest": "d" * 64}
    fields |= {"revision": 0, "application": f"model-{name}", "route": None, "state": State.DEPLOYING}
    return Record(name=name, **(fields | changes))


def test_what_is_put_is_there(settings: Settings) -> None:
    endpoints = Endpoints(settings)
    assert endpoints.all() == []
    assert endpoints.get("a") is None
    first = endpoints.put(record("a"))
    assert first.revision == 1
    second = endpoints.put(replace(first, state=State.SERVING, route=route("a", "generate")))
    assert Endpoints(settings).get("a") == second
    endpoints.put(record("b"))
    assert [one.name for one in endpoints.all()] == ["a", "b"]
    with endpoints.exclusive() as table:
        assert table == (route("a", "generate"),)
    endpoints.remove(second)
    assert endpoints.get("a") is None


def test_a_stale_writer_is_refused(settings: Settings) -> None:
    endpoints = Endpoints(settings)
    first = endpoints.put(record("a"))
    endpoints.put(replace(first, problem="x"))
    for late in (lambda: endpoints.put(first), lambda: endpoints.remove(first), lambda: endpoints.put(record("a"))):
        with pytest.raises(ConflictError, match="somebody else"):
            late()
    assert endpoints.get("a").problem == "x"


def test_of_many_writers_one_wins_each_time(settings: Settings) -> None:
    Endpoints(settings).put(record("a"))

    def write(number: int) -> int:
        endpoints, wins = Endpoints(settings), 0
        for _ in range(10):
            try:
                endpoints.put(replace(endpoints.get("a"), problem=str(number)))
                wins += 1
            except ConflictError:
                pass
        return wins

    with ThreadPoolExecutor(4) as pool:
        wins = sum(pool.map(write, range(4)))
    assert Endpoints(settings).get("a").revision == 1 + wins
    assert wins >= 10


def test_nobody_writes_while_the_table_is_held(settings: Settings) -> None:
    endpoints, wrote = Endpoints(settings), threading.Event()

    def write() -> None:
        Endpoints(settings).put(record("b", route=route("b", "generate")))
        wrote.set()

    with endpoints.exclusive():
        other = threading.Thread(target=write)
        other.start()
        assert not wrote.wait(0.5)
    other.join(10)
    assert wrote.is_set()


def test_processes_that_start_at_once_migrate_once(settings: Settings) -> None:
    code = (
        "from maas_ray.serve.endpoints import Endpoints; from maas_ray.settings import Settings; "
        "print(Endpoints(Settings.from_environment()).all())"
    )
    environment = {**os.environ, **settings.environment()}
    started = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=-1, stderr=-1) for _ in range(3)]
    for process in started:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out.decode().strip()) == (0, "[]"), err.decode()


def test_migrations_make_the_tables_that_are_declared(settings: Settings) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    Endpoints(settings)
    with _open(settings.database).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == [] or all(
            change[0] == "remove_table" and change[1].name == "maas_alembic_version"
            for change in compare_metadata(MigrationContext.configure(connection), Base.metadata)
        )


def test_a_database_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a database, but long enough to be taken for a broken one" * 20)
    for url in (f"sqlite:///{tmp_path}/file", "nosuch://x", "sqlite:////proc/nope/x.db"):
        with pytest.raises(StorageError):
            Endpoints(Settings.from_environment({"MAAS_HOME": str(tmp_path), "MAAS_DATABASE": url}))
