"""Endpoints as recorded: no write is lost when several write at once, in SQLite and in PostgreSQL."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from alembic import command

from maas_ray.database.engine import open_engine
from maas_ray.database.migrate import config
from maas_ray.errors import ConflictError
from maas_ray.serve.deployment.endpoints import Endpoints, Record, State
from maas_ray.settings import Settings
from tests.support.errors import raises
from tests.support.models import route


@pytest.fixture
def settings(each_database: Settings) -> Settings:
    return each_database


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
    now = endpoints.put(replace(now, spec=now.spec | {"max_queued_requests": 64}))  # a later version wrote the default
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
    with raises(ConflictError, "endpoint_changed", "endpoint a"):
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
        with raises(ConflictError, "endpoint_changed", "endpoint a"):
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


def test_history_begins_with_what_an_older_version_served(settings: Settings) -> None:
    (old,) = Endpoints(settings).put_all([record("a", state=State.SERVING)])
    Endpoints(settings).put(record("b"))
    configuration = config()
    with open_engine(settings.database).begin() as connection:
        configuration.attributes["connection"] = connection
        command.downgrade(configuration, "0001")
    (served,) = Endpoints(settings).history("a")
    assert (served.number, served.version, served.since) == (1, old.version, old.updated)
    assert Endpoints(settings).history("b") == []
