"""Which of an application's replicas a gateway asks."""

import asyncio
import time
from collections import Counter
from types import SimpleNamespace

import pytest

from maas_ray.ray_private.serve import HttpReplica, HttpReplicas
from maas_ray.serve import calls, upstreams
from maas_ray.serve.caller import ANONYMOUS
from maas_ray.serve.calls import Models
from maas_ray.serve.upstreams import RELAY, Replicas
from tests.support.models import route


def found(port: int, **metadata: str) -> HttpReplica:
    return HttpReplica("10.0.0.1", port, metadata or {RELAY: f"secret of {port}"})


def test_the_replica_with_the_fewest_requests_is_asked() -> None:
    listed = {"a": found(1), "b": found(2), "c": found(3)}
    replicas = Replicas(lambda: listed)
    for _ in range(30):
        replicas.choose(set()).in_flight += 1
    assert sorted(replica.in_flight for replica in replicas._replicas.values()) == [10, 10, 10]
    assert replicas.choose({"http://10.0.0.1:1", "http://10.0.0.1:3"}).url == "http://10.0.0.1:2"
    assert replicas.choose({f"http://10.0.0.1:{port}" for port in (1, 2, 3)}) is None


def test_idle_replicas_are_asked_alike() -> None:
    listed = {str(port): found(port) for port in range(3)}
    replicas = Replicas(lambda: listed)
    counts = Counter(replicas.choose(set()).url for _ in range(3000))
    assert min(counts.values()) > 850, counts  # 1,000 expected, with a standard deviation of 26


def test_replicas_of_another_version_of_the_package_are_not_asked() -> None:
    assert Replicas(lambda: {"a": found(1, other="x")}).choose(set()) is None


def test_a_replica_that_serve_took_away_is_asked_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    listed = {"a": found(1)}
    replicas = Replicas(lambda: listed)
    replica = replicas.choose(set())
    assert replica.secret == "secret of 1"
    replica.in_flight = 3
    listed = {}
    assert replicas.choose(set()) is replica
    now += upstreams._LEAVING_S - 0.1
    assert replicas.choose(set()) is replica
    listed = {"a": found(1)}  # it has its new options
    assert replicas.choose(set()) is replica
    listed = {}
    assert replicas.choose(set()) is replica
    now += upstreams._LEAVING_S + 0.1
    assert replicas.choose(set()) is None
    assert replicas._replicas == {}


def test_a_replica_that_cannot_be_reached_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    listed = {"a": found(1), "b": found(2)}
    replicas = Replicas(lambda: listed)
    replicas.choose({"http://10.0.0.1:2"}).avoid()
    assert {replicas.choose(set()).url for _ in range(50)} == {"http://10.0.0.1:2"}
    now += upstreams._UNREACHABLE_S
    assert {replicas.choose(set()).url for _ in range(50)} == {"http://10.0.0.1:1", "http://10.0.0.1:2"}


def test_serves_list_of_replicas_is_read_again_when_it_changes() -> None:
    def running(name: str, endpoint: tuple[str, int] | None) -> SimpleNamespace:
        return SimpleNamespace(
            replica_id=SimpleNamespace(unique_id=name), backend_http_endpoint=endpoint, replica_metadata={}
        )

    router = SimpleNamespace(request_router=None)
    replicas = HttpReplicas(SimpleNamespace(_router=SimpleNamespace(_asyncio_router=router)))
    assert replicas.now() == {}
    known = {1: running("a", ("h", 1)), 2: running("b", None), 3: running("c", ("h", 3))}
    router.request_router = SimpleNamespace(curr_replicas=known)
    first = replicas.now()
    assert first == {"a": HttpReplica("h", 1, {}), "c": HttpReplica("h", 3, {})}
    assert replicas.now() is first
    del known[1]  # the router has seen it dead
    assert list(replicas.now()) == ["c"]


@pytest.mark.parametrize("replicas", [3, 0])
def test_a_table_is_used_when_its_replicas_are_known_or_there_are_none(
    monkeypatch: pytest.MonkeyPatch, replicas: int
) -> None:
    asked = 0

    def known() -> bool:
        nonlocal asked
        asked += 1
        assert models.routes(caller=ANONYMOUS) == []  # the old table
        return replicas > 0 and asked > 3

    models = Models()
    monkeypatch.setattr(calls, "_REPLICAS_KNOWN_S", 0.2)
    monkeypatch.setattr(calls, "_handle", lambda application: SimpleNamespace(running_replicas_populated=known))
    asyncio.run(models.update((route("m", "predict"),)))
    assert [one.name for one in models.routes(caller=ANONYMOUS)] == ["m"]
    assert asked == 4 if replicas else asked > 4
