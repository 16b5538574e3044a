"""The platform's database: nothing lost when several write, or start, at once; in SQLite and in PostgreSQL."""

import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from maas_ray.errors import ConflictError, StorageError
from maas_ray.serve.deployment.endpoints import Base, Endpoints, Record, State, _open
from maas_ray.settings import Settings
from tests.support import postgres
from tests.unit.serve.api.test_app import route


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    programs = postgres.programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres.running(programs) as directory:
        yield directory


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a fresh platform, with each kind of database."""
    monkeypatch.setenv("MAAS_HOME", str(tmp_path / "home"))
    if request.param == "postgresql":
        server = request.getfixturevalue("server")
        monkeypatch.setenv("MAAS_DATABASE", postgres.new_database(server, uuid.uuid4().hex))
    return Settings.from_environment()


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


def test_when_it_was_changed_is_known_in_any_time_zone(settings: Settings) -> None:
    Endpoints(settings).put(record("a", state=State.SERVING))
    (served,) = Endpoints(settings).history("a")
    for moment in (Endpoints(settings).get("a").updated, served.since):
        assert moment.tzinfo is UTC
        assert abs(datetime.now(UTC) - moment) < timedelta(minutes=5)


def test_what_was_served_is_remembered(settings: Settings) -> None:
    endpoints = Endpoints(settings)
    now = endpoints.put(record("a"))
    assert endpoints.history("a") == []  # it has only begun
    now = endpoints.put(replace(now, state=State.SERVING))
    now = endpoints.put(replace(now, problem="m/2: no room"))  # still the same
    now = endpoints.put(replace(now, state=State.DEPLOYING, version="m/2"))
    now = endpoints.put(replace(now, state=State.SERVING))
    now = endpoints.put(replace(now, spec={"version": "m@champion", "smoke": {"a": 1}}))
    now = endpoints.put(replace(now, version="m/1", spec={"version": "m@champion"}))
    endpoints.put(record("b", state=State.SERVING))
    assert [(one.number, one.version) for one in endpoints.history("a")] == [
        (4, "m/1"),
        (3, "m/2"),
        (2, "m/2"),
        (1, "m/1"),
    ]
    endpoints.remove(now)
    assert endpoints.history("a") == []
    assert len(endpoints.history("b")) == 1


def test_several_change_together_or_not_at_all(settings: Settings) -> None:
    endpoints = Endpoints(settings)
    first, second = endpoints.put_all([record("b"), record("a")])
    assert (first.name, second.name) == ("b", "a")
    endpoints.put(replace(second, problem="x"))
    with pytest.raises(ConflictError, match="endpoint a"):
        endpoints.put_all([replace(first, version="m/2"), replace(second, version="m/2")])
    assert {one.version for one in endpoints.all()} == {"m/1"}


def test_those_who_change_the_same_ones_do_not_block_each_other(settings: Settings) -> None:
    Endpoints(settings).put_all([record("a"), record("b")])

    def write(order: tuple[str, str]) -> int:
        endpoints, wins = Endpoints(settings), 0
        for _ in range(10):
            try:
                endpoints.put_all([endpoints.get(name) for name in order])
                wins += 1
            except ConflictError:
                pass
        return wins

    with ThreadPoolExecutor(2) as pool:
        wins = sum(pool.map(write, [("a", "b"), ("b", "a")]))
    assert {one.revision for one in Endpoints(settings).all()} == {1 + wins}


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
        "from maas_ray.serve.deployment.endpoints import Endpoints; from maas_ray.settings import Settings; "
        "print(Endpoints(Settings.from_environment()).all())"
    )
    environment = {**os.environ, **settings.environment()}
    started = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=-1, stderr=-1) for _ in range(3)]
    for process in started:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out.decode().strip()) == (0, "[]"), err.decode()


def test_what_an_older_version_served_begins_the_history(settings: Settings) -> None:
    from alembic import command
    from alembic.config import Config

    import maas_ray.serve.deployment.endpoints as module

    config = Config()
    config.set_main_option("script_location", str(Path(module.__file__).parent / "migrations"))
    (old,) = Endpoints(settings).put_all([record("a", state=State.SERVING)])
    Endpoints(settings).put(record("b"))
    with _open(settings.database).begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
    (served,) = Endpoints(settings).history("a")
    assert (served.number, served.version, served.since) == (1, old.version, old.updated)
    assert Endpoints(settings).history("b") == []


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
