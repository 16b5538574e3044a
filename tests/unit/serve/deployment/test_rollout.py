"""Changes of an endpoint keep the number of replicas that its load needs, judged by Serve's own autoscaling state."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
from ray.serve._private.common import DeploymentID
from ray.serve._private.deployment_info import DeploymentInfo

from maas_ray.errors import DeploymentError
from maas_ray.serve.deployment import gateway_routes, rollout, smoke
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.deployment.drift import differences
from maas_ray.serve.deployment.endpoints import Endpoints, Record
from maas_ray.serve.deployment.ownership import model_app, of_gateway
from maas_ray.serve.spec import GATEWAY_APP, DeploySpec, SharedArgs
from maas_ray.settings import Settings
from tests.support.errors import raises
from tests.unit.serve.deployment.test_drift import PLATFORM, SERVING, SHARED, gateway

URL = "http://localhost"


class _Deployment:
    """A deployment as Serve's controller keeps it; all replicas that it wants run at once."""

    def __init__(self) -> None:
        self.state = DeploymentAutoscalingState(DeploymentID("Model", "app"))
        self.target, self.info, self.path = 0, None, None
        self.room = 100

    def deploy(self, info: DeploymentInfo, path: str | None) -> None:
        if self.info is None or self.path != path or self.info.config_changed(info):
            self.target = self.state.register(info, self.target)
        self.info, self.path = info, path

    def details(self) -> dict[str, Any]:
        running = min(self.target, self.room)
        bounds = self.info.deployment_config.autoscaling_config.model_dump(include={"min_replicas", "max_replicas"})
        deployment = {
            "target_num_replicas": self.target,
            "replicas": [{"state": "RUNNING"}] * running,
            "message": "",
            "deployment_config": {"autoscaling_config": bounds},
        }
        status = "RUNNING" if running == self.target else "DEPLOYING"
        application = {"status": status, "route_prefix": self.path, "source": "imperative", "message": ""}
        return application | {"deployments": {"Model": deployment}}


class _Serve:
    """Serve's controller, as far as numbers of replicas go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.running: dict[str, _Deployment] = {}
        self.events: list[str] = []
        self.while_waiting: Callable[[], None] = lambda: None
        monkeypatch.setattr(control, "submit", self.submit)
        monkeypatch.setattr(control, "applications", lambda: {n: d.details() for n, d in self.running.items()})
        monkeypatch.setattr(control, "delete", self.delete)
        monkeypatch.setattr(control, "wait", lambda *_, **__: self.while_waiting())
        monkeypatch.setattr(control, "ask", lambda *_, **__: "torch")
        monkeypatch.setattr(control, "wait_for_http", lambda *_: None)
        monkeypatch.setattr(smoke, "check", lambda *_: None)
        monkeypatch.setattr(rollout, "apply_gateway", lambda *_: None)

    def submit(self, application: Any, name: str, *, version: str, route_prefix: str | None) -> None:
        deployment = application._bound_deployment
        info = DeploymentInfo(deployment._deployment_config, deployment._replica_config, 0, "job", version=version)
        self.events += [f"start {name}"] if name not in self.running else []
        self.running.setdefault(name, _Deployment()).deploy(info, route_prefix)

    def delete(self, names: list[str]) -> None:
        self.events += [f"stop {name}" for name in names if self.running.pop(name, None)]

    def bounds(self, name: str) -> tuple[int, int]:
        config = self.running[name].info.deployment_config.autoscaling_config
        return config.min_replicas, config.max_replicas


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> _Serve:
    return _Serve(monkeypatch)


def _record(application: str = "model-one", **options: Any) -> Record:
    spec = DeploySpec.parse({"version": "a/1", "endpoint": "a", "scaling": {"max_replicas": 8}} | options)
    assert SERVING.route is not None
    route = SERVING.route.with_target(application=application)
    route = route.model_copy(update={"timeout_s": spec.request_timeout_s})
    return replace(SERVING, spec=spec.document(), application=application, route=route, revision=0)


def _move(settings: Settings, record: Record) -> None:
    endpoints = Endpoints(settings)
    changes = rollout.begin(endpoints, [(record, endpoints.get("a"))])
    rollout.carry_out(endpoints, changes, settings, URL)


def test_a_live_change_keeps_the_replicas(serve: _Serve, settings: Settings) -> None:
    _move(settings, _record())
    one = serve.running["model-one"]
    assert one.target == 1
    one.target = 5  # the autoscaler's decision
    for options in (
        {"request_timeout_s": 250},
        {"max_queued_requests": 7},
        {"direct": True},
        {"direct": False},
        {"scaling": {"max_replicas": 6}},
    ):
        _move(settings, _record(**options))
        assert one.target == 5, options
    _move(settings, _record(scaling={"max_replicas": 3}))
    assert one.target == 3
    _move(settings, _record(scaling={"min_replicas": 4, "max_replicas": 6}))
    assert one.target == 4


@pytest.mark.parametrize("direct", [False, True])
def test_a_new_version_starts_with_the_replicas_of_the_old_one(serve: _Serve, settings: Settings, direct: bool) -> None:
    _move(settings, _record(direct=direct))
    serve.running["model-one"].target = 5
    seen = []
    # While it has no requests, Serve would take replicas away after `downscale_delay_s`.
    serve.while_waiting = lambda: seen.append((serve.running["model-two"].target, serve.bounds("model-two")))
    _move(settings, _record("model-two", direct=direct))
    assert seen == [(5, (5, 8))]
    assert list(serve.running) == ["model-two"]
    assert serve.running["model-two"].target == 5
    assert serve.bounds("model-two") == (1, 8)
    assert [
        found
        for found in differences(PLATFORM, Endpoints(settings).all(), control.applications())
        if found.endpoint == "a"
    ] == []
    serve.while_waiting = lambda: None
    _move(settings, _record("model-three", scaling={"max_replicas": 3}))
    assert serve.running["model-three"].target == 3


def test_a_deployer_that_dies_before_the_end_leaves_a_difference(
    serve: _Serve, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _move(settings, _record())
    serve.running["model-one"].target = 2

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rollout, "give_path", die)
        with pytest.raises(KeyboardInterrupt):
            _move(settings, _record("model-two"))
    endpoints = Endpoints(settings)
    (found,) = [
        found
        for found in differences(endpoints.platform, endpoints.all(), control.applications())
        if found.endpoint == "a"
    ]
    assert found.what == "scaling"
    rollout.restore_options(endpoints.all()[0])
    assert (serve.running["model-two"].target, serve.bounds("model-two")) == (2, (1, 8))


def test_an_endpoint_at_zero_starts_one_replica_and_may_stop_it(serve: _Serve, settings: Settings) -> None:
    scaling = {"min_replicas": 0, "max_replicas": 4}
    _move(settings, _record(scaling=scaling))
    one = serve.running["model-one"]
    assert (one.target, serve.bounds("model-one")) == (1, (0, 4))
    one.target = 0
    _move(settings, _record(scaling=scaling, request_timeout_s=9))  # the options must work before they count
    assert (one.target, serve.bounds("model-one")) == (1, (0, 4))
    one.target = 3
    _move(settings, _record("model-two", scaling=scaling))
    assert (serve.running["model-two"].target, serve.bounds("model-two")) == (3, (0, 4))


def test_replicas_that_did_not_fit_are_not_wanted_after_the_change_failed(serve: _Serve, settings: Settings) -> None:
    _move(settings, _record())
    one = serve.running["model-one"]
    one.target, one.room = 2, 2

    def fail() -> None:
        assert one.target == 7
        raise DeploymentError("no room", code="no_room")

    serve.while_waiting = fail
    with raises(DeploymentError, "no_room"):
        _move(settings, _record(scaling={"min_replicas": 7, "max_replicas": 8}))
    assert (one.target, serve.bounds("model-one")) == (2, (1, 8))


def test_shared_replicas_keep_their_number(serve: _Serve, settings: Settings) -> None:
    rollout.submit_shared(SHARED, settings)
    shared = serve.running[SHARED]
    shared.target = 3
    options = SharedArgs(max_models=2).model_dump_json()
    rollout.submit_shared(SHARED, settings.model_copy(update={"shared": options}))
    assert shared.target == 3


def test_a_gateway_of_0_2_0_says_whose_it_is_before_a_route_moves(
    serve: _Serve, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _move(settings, _record())
    (old,) = Endpoints(settings).all()
    gateways = [gateway(old.route, platform=None)]
    models = control.applications

    def apply_gateway(endpoints: Endpoints, settings: Settings) -> None:
        gateway_routes.check_gateway(endpoints)
        gateways.append(gateway(*(record.route for record in endpoints.all()), platform=endpoints.platform))

    monkeypatch.setattr(control, "applications", lambda: models() | {GATEWAY_APP: gateways[-1]})
    for module in (gateway_routes, rollout):
        monkeypatch.setattr(module, "apply_gateway", apply_gateway)
    _move(settings, _record("model-two"))
    _, claimed, moved = gateways
    platform = Endpoints(settings).platform
    assert [of_gateway({GATEWAY_APP: each}) for each in (claimed, moved)] == [platform] * 2
    routes = [each["deployments"]["Gateway"]["deployment_config"]["user_config"]["routes"] for each in (claimed, moved)]
    assert [[target["application"] for target in route["targets"]] for (route,) in routes] == [
        ["model-one"],
        ["model-two"],
    ]


# --- strategy: recreate ----------------------------------------------------------------------------


@pytest.fixture
def two(settings: Settings) -> tuple[Record, Record]:
    """Two versions of an endpoint that is recreated, under names of this platform."""
    platform = Endpoints(settings).platform
    one, other = (model_app(platform, "a", digest) for digest in ("11111111", "22222222"))
    return _record(one, strategy="recreate"), _record(other, strategy="recreate", max_batch_size=8)


def test_recreate_stops_the_old_version_first(
    serve: _Serve, settings: Settings, two: tuple[Record, Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = two
    endpoints = Endpoints(settings)
    alike = replace(_record(model_app(endpoints.platform, "A", "33333333")), name="A")
    rollout.carry_out(endpoints, rollout.begin(endpoints, [(alike, None)]), settings, URL)
    _move(settings, old)
    serve.running[old.application].target = 5
    patience = []
    monkeypatch.setattr(control, "wait_until_gone", lambda name, seconds=0: patience.append((name, seconds)))
    serve.events.clear()
    _move(settings, new)
    assert serve.events == [f"stop {old.application}", f"start {new.application}"]
    assert (old.application, 300) in patience  # its requests may take so long
    assert serve.running[new.application].target == 5
    assert set(serve.running) == {new.application, alike.application}
    assert endpoints.get("a").application == new.application


def test_recreate_starts_the_old_version_again_if_the_new_one_fails(
    serve: _Serve, settings: Settings, two: tuple[Record, Record]
) -> None:
    old, new = two
    _move(settings, old)
    serve.events.clear()

    def fail() -> None:
        if new.application in serve.running:
            raise DeploymentError("it cannot load", code="application_failed")

    serve.while_waiting = fail
    with raises(DeploymentError, "application_failed"):
        _move(settings, new)
    assert serve.events == [
        *(f"stop {old.application}", f"start {new.application}"),
        *(f"stop {new.application}", f"start {old.application}"),
    ]
    now = Endpoints(settings).get("a")
    assert (now.state.value, now.application, now.spec) == ("serving", old.application, old.spec)
    assert "it cannot load" in now.problem
    assert [found for found in differences(PLATFORM, [now], control.applications()) if found.endpoint == "a"] == []


@pytest.mark.parametrize("dead_after", ["record", "stop", "start", "failure"])
def test_recreate_is_continued_after_its_deployer_died(
    serve: _Serve, settings: Settings, two: tuple[Record, Record], dead_after: str
) -> None:
    """Whoever continues a change carries it out again from its record, as `maas reconcile` does."""
    old, new = two
    endpoints = Endpoints(settings)
    _move(settings, old)
    (change,) = rollout.begin(endpoints, [(new, endpoints.get("a"))])
    if dead_after != "record":
        serve.delete([old.application])
    if dead_after in ("start", "failure"):
        rollout.submit(endpoints, change, settings)
    wanted = new
    if dead_after == "failure":  # and its record says already that the old version shall serve
        wanted = endpoints.put(replace(change.before, revision=change.begun.revision, problem="it cannot load"))
    serve.events.clear()
    now = endpoints.get("a")
    again = rollout.Change(wanted, rollout.served(endpoints, now), now)
    rollout.carry_out(endpoints, [again], settings, URL)
    assert set(serve.running) == {wanted.application}
    assert endpoints.get("a").application == wanted.application
    if dead_after == "failure":
        assert serve.events == [f"stop {new.application}", f"start {old.application}"]
