"""One pass repairs what is recorded; an unattended pass does less; passes exclude each other."""

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from maas_ray import cluster
from maas_ray.database.engine import Database
from maas_ray.database.leases import Lease
from maas_ray.errors import ConflictError, DeploymentError
from maas_ray.serve.deployment import drift, reconcile, reconciler, rollout
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.deployment.endpoints import Endpoints, Record, State
from maas_ray.serve.deployment.reconcile import Outcome, reconcile_once
from maas_ray.serve.deployment.reconciler import Reconciler, leased_pass
from maas_ray.serve.spec import GATEWAY_APP
from maas_ray.settings import Settings
from tests.support.errors import raises
from tests.support.models import route
from tests.unit.serve.deployment.test_drift import ROUTE, RUNNING, SERVING, application, gateway

BEGUN = replace(SERVING, application="model-new", state=State.DEPLOYING)


class Platform:
    """A Serve that runs these applications; a change begins, and is noted instead of being carried out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, settings: Settings, running: dict[str, Any]) -> None:
        self.settings, self.running, self._monkeypatch = settings, running, monkeypatch
        self.resumed: list[str] = []
        self.deleted: list[str] = []
        monkeypatch.setattr(cluster, "connect", lambda _: None)
        monkeypatch.setattr(reconcile, "forget_client", lambda: None)
        monkeypatch.setattr(control, "running", lambda: bool(self.running))
        monkeypatch.setattr(control, "start", lambda _: "http://localhost")
        monkeypatch.setattr(control, "applications", lambda: self.running)
        monkeypatch.setattr(reconcile, "_resume", self._resume)
        monkeypatch.setattr(rollout, "delete_unused", lambda _, names: self.deleted.extend(names))

    def _resume(self, endpoints: Endpoints, record: Record, settings: Settings) -> Outcome:
        self.resumed.append(record.name)
        return Outcome(record.name, "resumed")

    def record(self, *records: Record, age: timedelta = timedelta()) -> None:
        Endpoints(self.settings).put_all([replace(record, revision=0) for record in records])
        written = Endpoints.all

        def aged(endpoints: Endpoints) -> list[Record]:
            return [replace(record, updated=datetime.now(UTC) - age) for record in written(endpoints)]

        self._monkeypatch.setattr(Endpoints, "all", aged)


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Platform:
    return Platform(monkeypatch, settings, dict(RUNNING))


def test_a_pass_on_request_resumes_changes_and_deletes_unneeded_applications(platform: Platform) -> None:
    platform.record(BEGUN)
    platform.running["model-left"] = application()
    outcomes = reconcile_once(platform.settings)
    assert platform.resumed == ["a"]
    assert platform.deleted == ["model-left"]
    assert [outcome.endpoint for outcome in outcomes] == ["a", "model-left"]


def test_an_unattended_pass_leaves_a_change_to_its_deployer_until_that_has_given_up(platform: Platform) -> None:
    platform.record(BEGUN, age=timedelta(seconds=60))
    platform.running["model-left"] = application()
    assert reconcile_once(platform.settings, unattended=True) == []
    platform.record(replace(BEGUN, name="b"), age=timedelta(seconds=60 + 300 + 61))
    reconcile_once(platform.settings, unattended=True)
    assert platform.resumed == ["a", "b"]
    assert platform.deleted == []


def test_an_unattended_pass_restores_a_lost_endpoint(platform: Platform) -> None:
    platform.record(SERVING)
    del platform.running[ROUTE.target.application]
    assert reconcile_once(platform.settings, unattended=True) == [Outcome("a", "resumed")]


def test_an_unattended_pass_does_not_start_serve(platform: Platform) -> None:
    platform.record(SERVING)
    platform.running.clear()
    assert reconcile_once(platform.settings, unattended=True) == []
    assert platform.resumed == []


def test_an_unattended_pass_leaves_a_gateway_with_routes_of_another_database(platform: Platform) -> None:
    platform.record(BEGUN, age=timedelta(days=1))
    platform.running[GATEWAY_APP] = gateway(ROUTE, route("stranger", "predict"))
    (outcome,) = reconcile_once(platform.settings, unattended=True)
    assert outcome.endpoint == GATEWAY_APP
    assert "stranger" in outcome.problem
    assert platform.resumed == []
    assert drift.unknown_routes([SERVING], platform.running) == ["stranger"]


def test_a_pass_stops_when_its_lease_is_lost(platform: Platform) -> None:
    platform.record(BEGUN, replace(BEGUN, name="b"))

    def lost() -> None:
        raise ConflictError("expired", code="lease_lost")

    with raises(ConflictError, "lease_lost"):
        reconcile_once(platform.settings, check=lost)
    assert platform.resumed == ["a"]


def test_a_pass_waits_for_no_other(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciler, "reconcile_once", lambda *_, **__: [Outcome("a", "done")])
    other = Lease(Database(settings.database), "reconcile", "another process")
    with other.held(wait_seconds=0), raises(ConflictError, "lease_held", "another process"):
        leased_pass(settings, wait_seconds=0)
    assert leased_pass(settings, wait_seconds=0) == [Outcome("a", "done")]


def test_the_reconciler_answers_requests_and_passes_their_errors_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def leased(settings: Settings, *, wait_seconds: float, unattended: bool = False) -> list[Outcome]:
        seen.append(unattended)
        if settings.http_port == 1:
            raise DeploymentError("port 1", code="port_taken")
        return [Outcome("a", f"at {settings.http_port}")]

    monkeypatch.setattr(reconciler, "leased_pass", leased)
    actor = Reconciler(settings.model_copy(update={"reconcile_seconds": 0}).document())
    document = settings.model_copy(update={"reconcile_seconds": 0}).document()
    assert actor.reconcile(document | {"http_port": 7}) == [Outcome("a", "at 7")]
    with raises(DeploymentError, "port_taken"):
        actor.reconcile(document | {"http_port": 1})
    assert actor.reconcile(document | {"http_port": 8}) == [Outcome("a", "at 8")]
    assert seen == [False, False, False]


def test_the_loop_makes_unattended_passes_and_slows_down_while_they_fail(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[bool] = []

    def leased(_: Settings, *, wait_seconds: float, unattended: bool = False) -> list[Outcome]:
        passes.append(unattended)
        raise DeploymentError("no room")

    monkeypatch.setattr(reconciler, "leased_pass", leased)
    monkeypatch.setattr(reconciler, "work", lambda _: True)
    monkeypatch.setattr(reconciler, "compute_code_version", lambda: "same")
    actor = Reconciler(settings.model_copy(update={"reconcile_seconds": 0.1}).document())
    deadline = time.monotonic() + 20
    while len(passes) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert all(passes)
    assert actor._pause >= 0.4  # doubled at least twice
    actor.loop_every(0)
