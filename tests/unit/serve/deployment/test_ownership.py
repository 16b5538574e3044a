"""One cluster serves one platform: names and the gateway say which, and who is another changes nothing."""

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from maas_ray.database.platform import Platform
from maas_ray.errors import DeploymentError
from maas_ray.serve.deployment import gateway_routes, ownership, rollout, verbs
from maas_ray.serve.deployment import serve_control as control
from maas_ray.serve.deployment.drift import differences, routed, unwanted
from maas_ray.serve.deployment.endpoints import Endpoints, Record, State
from maas_ray.serve.deployment.gateway_routes import check_gateway
from maas_ray.serve.deployment.ownership import model_app, other_platform, owner, shared_app
from maas_ray.serve.deployment.reconcile import reconcile_once
from maas_ray.serve.spec import GATEWAY_APP
from maas_ray.settings import Settings
from tests.support.errors import raises
from tests.support.models import route
from tests.unit.serve.deployment.test_drift import PLATFORM, ROUTE, SERVING, application, gateway

OTHER = Platform("fedc9876", "postgresql://maas:***@db/maas", "bob@other")
# An application of version 0.2.0, whose names carry no id: of an endpoint whose own name ends like one.
EARLIER = "model-lm-deadbeef-86e80789"
DIGEST = "0011223344556677"


def serving(endpoint: str) -> dict[str, Any]:
    """An application whose replicas have the route of this endpoint."""
    config = {"user_config": {"route": route(endpoint, "predict").model_dump(mode="json")}}
    return application(deployments={"Model": {"deployment_config": config}})


@pytest.mark.parametrize("endpoint", ["lm", "a-b", "fedc9876", "x-fedc9876", "Ünder_score"])
def test_names_say_whose_they_are(endpoint: str) -> None:
    name = model_app(PLATFORM, endpoint, DIGEST)
    assert owner(name) == owner(shared_app(PLATFORM)) == PLATFORM.id
    assert name.endswith("-0123abcd-00112233")


@pytest.mark.parametrize(
    "name", ["model-lm-86e80789", "model-of-another-team", "maas-shared", "maas-gateway", "maas-shared-x", "mine"]
)
def test_names_of_earlier_versions_and_of_others_have_no_owner(name: str) -> None:
    assert owner(name) == ""
    assert unwanted(PLATFORM, [], {name: application()}) == []


@pytest.mark.parametrize(
    ("records", "running", "other"),
    [
        ([SERVING], {}, ""),
        ([SERVING], {GATEWAY_APP: gateway(ROUTE)}, ""),
        # A database restored from an older copy still owns its gateway.
        ([], {GATEWAY_APP: gateway(ROUTE)}, ""),
        ([SERVING], {GATEWAY_APP: gateway(ROUTE, platform=OTHER)}, "fedc9876 (database postgresql://maas:***@db/maas"),
        # A gateway without routes belongs to nobody, unless its platform is bringing an application up.
        ([], {GATEWAY_APP: gateway(platform=OTHER)}, ""),
        ([], {GATEWAY_APP: gateway(platform=OTHER), model_app(OTHER, "x", DIGEST): application()}, "fedc9876"),
        ([], {shared_app(OTHER): application("DEPLOYING", ())}, "fedc9876"),
        ([], {shared_app(OTHER): application("DELETING")}, ""),
        ([], {"model-of-another-team": application()}, ""),
        ([replace(SERVING, application=EARLIER, route=None)], {EARLIER: application()}, ""),
        ([replace(SERVING, route=ROUTE.with_target(application=EARLIER))], {EARLIER: application()}, ""),
        ([], {EARLIER: serving("lm-deadbeef")}, ""),
        ([], {EARLIER: serving("LM_deadbeef")}, ""),
        ([], {EARLIER: serving("lm")}, "platform deadbeef"),
        ([], {EARLIER: application()}, "platform deadbeef"),
        ([], {GATEWAY_APP: gateway(ROUTE, platform=OTHER) | {"status": "DELETING"}}, ""),
        # Version 0.2.0 wrote no platform: records say whose it is.
        ([SERVING], {GATEWAY_APP: gateway(ROUTE, platform=None)}, ""),
        ([SERVING], {GATEWAY_APP: gateway(platform=None)}, ""),
        ([], {GATEWAY_APP: gateway(ROUTE, platform=None)}, "an earlier version of maas_ray, with the endpoints a"),
        ([SERVING], {GATEWAY_APP: gateway(ROUTE, route("b", "predict"), platform=None)}, "with the endpoints b"),
        (
            [SERVING],
            {GATEWAY_APP: gateway(ROUTE.with_target(application="model-a-00000000"), platform=None)},
            "with the endpoints a",
        ),
        ([SERVING], {GATEWAY_APP: gateway(ROUTE, platform=None) | {"source": "declarative"}}, "config file"),
    ],
)
def test_a_cluster_belongs_to_the_platform_whose_routes_its_gateway_has(
    records: list[Record], running: dict[str, Any], other: str
) -> None:
    found = other_platform(PLATFORM, records, running)
    assert other in found
    assert bool(other) == bool(found)
    assert (routed(PLATFORM, records, running) == set()) or not found


def test_a_gateway_that_was_stored_with_one_application_for_each_route_is_read() -> None:
    running = {GATEWAY_APP: gateway(ROUTE, platform=None)}
    config = ownership.gateway_config(running)
    (stored,) = config["routes"]
    stored["application"] = stored.pop("targets")[0]["application"]
    assert other_platform(PLATFORM, [SERVING], running) == ""


def test_another_platforms_gateway_is_one_difference() -> None:
    running = {ROUTE.target.application: application(), GATEWAY_APP: gateway(route("x", "predict"), platform=OTHER)}
    (difference,) = differences(PLATFORM, [SERVING], running)
    assert (difference.endpoint, difference.what) == (GATEWAY_APP, "platform")
    assert "fedc9876" in difference.found
    (endpoint,) = verbs._described(PLATFORM, [SERVING], running, "http://localhost:8000")
    assert (endpoint.state, endpoint.url) == ("not routed", "")
    mine = running | {GATEWAY_APP: gateway(ROUTE)}
    recreated = replace(SERVING, state=State.DEPLOYING)
    (endpoint,) = verbs._described(PLATFORM, [recreated], {GATEWAY_APP: mine[GATEWAY_APP]}, "http://localhost:8000")
    assert (endpoint.state, endpoint.url) == ("deploying", "")
    (endpoint,) = verbs._described(PLATFORM, [SERVING], mine, "http://localhost:8000")
    assert (endpoint.state, endpoint.url) == ("serving", "http://localhost:8000")


def test_who_does_not_own_the_cluster_changes_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("something was changed")

    endpoints = Endpoints(settings)
    record = endpoints.put(replace(SERVING, revision=0))
    monkeypatch.setattr(control, "applications", lambda: {GATEWAY_APP: gateway(route("x", "predict"), platform=OTHER)})
    monkeypatch.setattr(control, "start", lambda _: "http://localhost")
    monkeypatch.setattr(control, "running", lambda: True)
    monkeypatch.setattr("maas_ray.cluster.connect", lambda *_, **__: None)
    for name in ("submit", "delete"):
        monkeypatch.setattr(control, name, never)
    for act in (
        lambda: check_gateway(endpoints),
        lambda: check_gateway(None),
        lambda: gateway_routes.apply_gateway(endpoints, settings),
        lambda: rollout.remove(endpoints, record, settings),
        lambda: reconcile_once(settings),
    ):
        with raises(DeploymentError, "cluster_of_another_platform", OTHER.id, OTHER.database, OTHER.created_by):
            act()
    (outcome,) = reconcile_once(settings, unattended=True)
    assert (outcome.endpoint, OTHER.id in outcome.problem) == (GATEWAY_APP, True)
    assert endpoints.all() == [record]


def test_who_loses_the_race_for_a_free_cluster_is_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [{}, {GATEWAY_APP: gateway(route("x", "predict"), platform=OTHER)}]
    monkeypatch.setattr(control, "applications", lambda: seen.pop(0))
    monkeypatch.setattr(control, "host", lambda: "127.0.0.1")
    monkeypatch.setattr("maas_ray.serve.gateway.alive_nodes", lambda: 1)
    for name in ("submit", "wait"):
        monkeypatch.setattr(control, name, lambda *_, **__: None)
    with raises(DeploymentError, "cluster_of_another_platform", OTHER.id):
        gateway_routes.apply_gateway(Endpoints(settings), settings)


def test_an_id_is_drawn_once_for_a_database(each_database: Settings) -> None:
    code = (
        "from maas_ray.serve.deployment.endpoints import Endpoints; from maas_ray.settings import Settings; "
        "print(Endpoints(Settings.from_environment()).platform.id)"
    )
    environment = {**os.environ, **each_database.environment()}
    started = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=-1, text=True) for _ in range(2)]
    ids = {process.communicate(timeout=60)[0].strip() for process in started}
    assert ids == {Endpoints(each_database).platform.id}
    assert owner(f"maas-shared-{ids.pop()}")
