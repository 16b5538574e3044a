"""One pass repairs what is recorded; an unattended pass does less; passes exclude each other."""

import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import GetTimeoutError, RayActorError

from maas_ray import cluster
from maas_ray.database.engine import Database
from maas_ray.database.leases import Lease
from maas_ray.errors import ClusterError, ConflictError, DeploymentError, MaasError
from maas_ray.serve.deployment import drift, ownership, reconcile, reconciler, rollout, verbs
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.deployment.endpoints import Endpoints, Record, State
from maas_ray.serve.deployment.reconcile import Outcome, reconcile_once
from maas_ray.serve.deployment.reconciler import Reconciler, leased_pass
from maas_ray.serve.spec import GATEWAY_APP, SHARED_DEPLOYMENT
from maas_ray.settings import Settings, exists
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

    def application(self, name: str) -> str:
        return ownership.model_app(Endpoints(self.settings).platform, name, "f" * 64)

    def routes_can_be_written(self) -> None:
        def apply(endpoints: Endpoints, _: Settings) -> None:
            self.running[GATEWAY_APP] = gateway(
                *(record.route for record in endpoints.all() if record.route), platform=endpoints.platform
            )

        self._monkeypatch.setattr(reconcile, "apply_gateway", apply)

    def record(self, *records: Record, age: timedelta = timedelta()) -> None:
        Endpoints(self.settings).put_all([replace(record, revision=0) for record in records])
        written = Endpoints.all

        def aged(endpoints: Endpoints) -> list[Record]:
            return [replace(record, updated=datetime.now(UTC) - age) for record in written(endpoints)]

        self._monkeypatch.setattr(Endpoints, "all", aged)


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Platform:
    running = RUNNING | {GATEWAY_APP: gateway(ROUTE, platform=Endpoints(settings).platform)}
    return Platform(monkeypatch, settings, running)


def test_a_pass_on_request_resumes_changes_and_deletes_unneeded_applications(platform: Platform) -> None:
    platform.record(BEGUN)
    left = platform.application("left")
    platform.running |= {left: application(), "model-of-another-team": application()}
    outcomes = reconcile_once(platform.settings)
    assert platform.resumed == ["a"]
    assert platform.deleted == [left]
    assert [outcome.endpoint for outcome in outcomes] == ["a", left]


def test_an_unattended_pass_leaves_a_change_that_has_just_begun(platform: Platform) -> None:
    platform.record(BEGUN, age=timedelta(seconds=50))
    platform.running[platform.application("left")] = application()
    assert reconcile_once(platform.settings, unattended=True) == []
    platform.record(replace(BEGUN, name="b"), age=timedelta(seconds=61))
    reconcile_once(platform.settings, unattended=True)
    assert platform.resumed == ["a", "b"]
    assert platform.deleted == []


def test_an_unattended_pass_leaves_a_change_while_its_deployer_holds_the_lease(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "_GRACE_SECONDS", 0)
    endpoints = Endpoints(platform.settings)
    (begun,) = endpoints.put_all([replace(BEGUN, revision=0)])
    with endpoints.lease(begun).held(wait_seconds=0):
        assert endpoints.lease(endpoints.all()[0]).taken()  # as read by another process
        assert reconcile_once(platform.settings, unattended=True) == []
        assert not endpoints.lease(replace(begun, revision=2)).taken()  # a later change has its own
        reconcile_once(platform.settings)  # on request, it is continued
        assert platform.resumed == ["a"]
    reconcile_once(platform.settings, unattended=True)
    assert platform.resumed == ["a", "a"]


def test_a_deployer_holds_the_leases_of_its_changes(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoints = Endpoints(settings)
    changes = rollout.begin(endpoints, [(replace(SERVING, name=name, revision=0), None) for name in ("a", "b")])
    taken: list[bool] = []

    def note(*_: Any) -> None:
        taken.extend(endpoints.lease(change.begun).taken() for change in changes)

    monkeypatch.setattr(rollout, "submit", note)
    monkeypatch.setattr(rollout, "make_ready", lambda change, _: change)
    monkeypatch.setattr(rollout, "switch", note)
    rollout.carry_out(endpoints, changes, settings, "http://localhost")
    assert taken == [True] * 6
    assert not any(endpoints.lease(change.begun).taken() for change in changes)


def test_a_pass_on_request_deletes_nothing_while_the_gateway_has_routes_of_another_database(
    platform: Platform,
) -> None:
    platform.record(SERVING)
    mine, stranger = Endpoints(platform.settings).platform, platform.application("stranger")
    platform.running |= {
        GATEWAY_APP: gateway(ROUTE, route("stranger", "predict"), platform=mine),
        stranger: application(),
    }
    platform.routes_can_be_written()
    written, left = reconcile_once(platform.settings)
    assert (written.endpoint, written.problem) == (GATEWAY_APP, "")
    assert (left.endpoint, "stranger" in left.problem) == (stranger, True)
    assert platform.deleted == []
    reconcile_once(platform.settings)
    assert platform.deleted == [stranger]


def test_an_unattended_pass_starts_lost_shared_replicas_but_leaves_their_options(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Endpoints(platform.settings).platform
    name = ownership.shared_app(mine)
    shared = ROUTE.with_target(application=name)
    platform.record(replace(SERVING, application=name, route=shared))
    options = {"deployment_config": {"user_config": {"max_models": 2}}, "replicas": [{"state": "RUNNING"}]}
    platform.running |= {
        name: application(deployments={SHARED_DEPLOYMENT: options}),
        GATEWAY_APP: gateway(shared, platform=mine),
    }
    started: list[int] = []
    monkeypatch.setattr(rollout, "submit_shared", lambda _, used: started.append(rollout.shared_args(used).max_models))
    monkeypatch.setattr(control, "wait", lambda *_, **__: None)
    settings = platform.settings.model_copy(update={"shared": "{max_models: 3}"})
    reconcile_once(settings, unattended=True)
    assert started == []
    reconcile_once(settings)
    assert started == [3]
    del platform.running[name]
    reconcile_once(settings, unattended=True)
    assert started == [3, 3]


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
    mine = Endpoints(platform.settings).platform
    platform.running[GATEWAY_APP] = gateway(ROUTE, route("stranger", "predict"), platform=mine)
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
    monkeypatch.setattr(reconciler, "work", lambda _: True)
    other = Lease(Database(settings.database), "reconcile", "another process")
    with other.held(wait_seconds=0), raises(ConflictError, "lease_held", "another process"):
        leased_pass(settings, wait_seconds=0)
    assert leased_pass(settings, wait_seconds=0) == [Outcome("a", "done")]


def test_a_pass_does_not_create_a_database(settings: Settings) -> None:
    assert leased_pass(settings, wait_seconds=0, unattended=True) == []
    assert not exists(settings.database)


def test_the_reconciler_gets_the_options_that_the_file_of_shared_replicas_had(
    settings: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "shared.yaml"
    file.write_text("max_models: 3")
    portable = reconciler._portable(settings.model_copy(update={"shared": str(file)}))
    before = reconciler._identity(settings.model_copy(update={"shared": str(file)}))
    file.write_text("max_models: 4")
    assert rollout.shared_args(portable).max_models == 3
    assert reconciler._identity(settings.model_copy(update={"shared": str(file)})) != before
    assert Settings.parse(portable.document()) == portable


def test_a_reconciler_with_other_settings_or_code_has_another_identity(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.model_copy(update={"reconcile_seconds": 0})
    actor = Reconciler(settings.document())
    assert actor.identity() == reconciler._identity(settings)
    for change in ({"trust_remote_code": True}, {"reconcile_seconds": 1.0}, {"shared": "{max_models: 3}"}):
        assert actor.identity() != reconciler._identity(settings.model_copy(update=change))
    monkeypatch.setattr(reconciler, "compute_code_version", lambda: "other")
    assert actor.identity() != reconciler._identity(settings)


def test_a_reconciler_ends_when_an_installation_is_complete(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    actor = Reconciler(settings.model_copy(update={"reconcile_seconds": 0}).document())
    assert not actor._superseded()
    for installed in ("half", "more"):
        monkeypatch.setattr(reconciler, "compute_code_version", lambda installed=installed: installed)
        assert actor._superseded()
    assert ended == []
    assert actor._superseded()
    assert ended == [0]


def test_a_deployment_does_not_fail_because_of_the_reconciler(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: Settings) -> None:
        raise ClusterError("no room")

    monkeypatch.setattr(reconciler, "_existing", full)
    reconciler.ensure(settings)
    assert "no room" in caplog.text


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (GetTimeoutError("late"), ClusterError, "reconciler_silent"),
        (RayActorError(), ConflictError, "reconciler_replaced"),
    ],
)
def test_waiting_for_the_reconciler_is_announced_and_ends_in_words(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    kind: type[MaasError],
    code: str,
) -> None:
    def get(_: Any, *, timeout: float) -> None:
        assert timeout == 90
        raise error

    monkeypatch.setattr(ray, "wait", lambda answers, timeout: ([], answers))
    monkeypatch.setattr(ray, "get", get)
    with raises(kind, code):
        reconciler._outcomes(object(), 90)
    assert "1 min 30 s" in capsys.readouterr().out


@pytest.mark.parametrize(("labels", "room_s"), [({}, 60), ({"ray.io/node-group": "gpu"}, 900)])
def test_the_wait_for_the_reconciler_covers_the_timeouts_of_all_endpoints(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, labels: dict[str, str], room_s: int
) -> None:
    """A node that an autoscaler starts takes minutes; Ray labels such nodes with their group."""
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Labels": {"ray.io/node-id": "1"} | labels}])
    assert reconciler._longest_wait(settings) == 660
    Endpoints(settings).put(replace(SERVING, revision=0))
    assert reconciler._longest_wait(settings) == 660 + 2 * (room_s + 2 * 300 + 600)
    Endpoints(settings).put(replace(SERVING, name="b", spec={"of_another_version": 1}, revision=0))
    assert reconciler._longest_wait(settings) == 660 + 2 * (room_s + 2 * 300 + 600)


def test_a_record_that_cannot_be_read_keeps_no_other_endpoint_from_its_options(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    monkeypatch.setattr(rollout, "_submit", lambda record, _: given.append(rollout._spec(record).version))
    direct, path = {**SERVING.spec, "direct": True}, {"direct": True, "of_another_version": 1}
    platform.record(replace(SERVING, spec=path), replace(SERVING, name="b", spec=direct))
    platform.routes_can_be_written()
    outcomes = {outcome.endpoint: outcome for outcome in reconcile_once(platform.settings)}
    assert given == ["a@champion"]
    assert outcomes["b"].problem == ""
    assert "of_another_version" in outcomes["a"].problem


def test_a_promotion_passes_over_a_record_that_cannot_be_read(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Endpoints(settings).put(replace(SERVING, spec={"of_another_version": 1}, revision=0))
    Endpoints(settings).put(replace(SERVING, name="b", revision=0))
    moved: list[str | None] = []
    version = SimpleNamespace(name="a")
    registry = SimpleNamespace(resolve=lambda _: version, set_alias=lambda *_: None)
    monkeypatch.setattr(verbs, "Registry", lambda _: registry)
    monkeypatch.setattr(verbs, "_serve", lambda requested, _: moved.extend(spec.endpoint for spec, _ in requested))
    monkeypatch.setattr(verbs, "pass_gates", lambda *_: None)
    verbs.promote("a/4", "champion", settings=settings)
    assert moved == ["a"]


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
    monkeypatch.setattr(reconciler, "compute_code_version", lambda: "same")
    actor = Reconciler(settings.model_copy(update={"reconcile_seconds": 0.1}).document())
    deadline = time.monotonic() + 20
    while len(passes) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert all(passes)
    assert actor._pause >= 0.4  # doubled at least twice
    actor.loop_every(0)
