"""Desired against running, as values; and the request that a new version must answer."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from maas_ray.database.platform import Platform
from maas_ray.serve.api.app import create_app
from maas_ray.serve.deployment import ownership, smoke
from maas_ray.serve.deployment.drift import Difference, changes, differences, unwanted
from maas_ray.serve.deployment.endpoints import Record, State
from maas_ray.serve.routes import Route, to_config
from maas_ray.serve.spec import GATEWAY_APP, SHARED_DEPLOYMENT, DeploySpec, SharedArgs
from tests.support.echo import EchoAndSums
from tests.support.models import route
from tests.unit.serve.deployment.test_endpoints import record

PLATFORM = Platform("0123abcd", "sqlite:////srv/maas.db", "ann@head")
SHARED = ownership.shared_app(PLATFORM)
LEFT = ownership.model_app(PLATFORM, "left", "f" * 64)
SPEC = DeploySpec.parse({"version": "a@champion", "endpoint": "a"})
ROUTE = route("a", "predict")
SERVING = record(
    "a", spec=SPEC.document(), version="a/3", application=ROUTE.target.application, route=ROUTE, state=State.SERVING
)


DIRECT = replace(SERVING, spec={**SERVING.spec, "direct": True})


def application(status: str = "RUNNING", replicas: tuple[str, ...] = ("RUNNING",), **changes: Any) -> dict[str, Any]:
    deployment = {"message": "", "replicas": [{"state": state} for state in replicas]}
    return (
        {"status": status, "message": "", "source": "imperative", "deployments": {"Model": deployment}}
        | {"route_prefix": None}
        | changes
    )


def held(minimum: int) -> dict[str, Any]:
    """An application whose deployer has held this minimum of replicas."""
    bounds = {"min_replicas": minimum, "max_replicas": 4}
    deployment = {"message": "", "replicas": [], "deployment_config": {"autoscaling_config": bounds}}
    return application(deployments={"Model": deployment})


def gateway(*routes: Route, platform: Platform | None = PLATFORM) -> dict[str, Any]:
    config = to_config(routes) | ownership.to_config(platform)
    return application(deployments={"Gateway": {"deployment_config": {"user_config": config}}})


RUNNING = {ROUTE.target.application: application(), GATEWAY_APP: gateway(ROUTE)}


def found(*records: Record, **running: Any) -> set[tuple[str, str]]:
    shown = {name.replace("_", "-"): one for name, one in running.items()}
    return {(one.endpoint, one.what) for one in differences(PLATFORM, records, RUNNING | shown)}


def test_what_stands_as_it_should_differs_in_nothing() -> None:
    assert found(SERVING) == set()
    assert found(replace(SERVING, problem="a/4: no room")) == set()  # the old one goes on, as it should
    assert found(SERVING, model_a=application(replicas=())) == set()  # scaled to zero
    assert found(SERVING, model_a=application("UNHEALTHY")) == set()  # one replica of several is ill
    assert found(SERVING, model_a=application("DEPLOYING", ("UPDATING",))) == set()  # it takes new options
    assert found(SERVING, model_a=held(1)) == set()
    assert found(replace(SERVING, spec={"of_old": 1}), model_a=held(1)) == set()  # a field of an earlier version
    assert found(DIRECT, model_a=application(route_prefix="/v2/models/a")) == set()
    assert found(SERVING, model_other=application(source="declarative"), mine=application()) == set()


@pytest.mark.parametrize(
    ("records", "running", "what"),
    [
        ([SERVING], {"model_a": application("DELETING")}, ("a", "missing")),
        ([SERVING], {"model_a": application("DEPLOY_FAILED", ())}, ("a", "failed")),
        ([SERVING], {"model_a": application("DEPLOYING", ("STARTING",))}, ("a", "failed")),
        ([replace(SERVING, state=State.DEPLOYING)], {}, ("a", "unfinished")),
        ([replace(SERVING, state=State.REMOVING)], {}, ("a", "unfinished")),
        ([replace(SERVING, state=State.FAILED)], {}, ("a", "failed")),
        ([SERVING], {"maas_gateway": gateway()}, ("a", "version")),
        ([SERVING], {"maas_gateway": gateway(route("a", "predict", version="a/2"))}, ("a", "version")),
        ([SERVING], {"maas_gateway": gateway(route("a", "predict", timeout_s=5))}, ("a", "route")),
        ([SERVING], {"maas_gateway": gateway(ROUTE, route("b", "predict"))}, ("b", "version")),
        ([SERVING], {"maas_gateway": application("DELETING")}, (GATEWAY_APP, "missing")),
        ([SERVING], {"model_a": application(route_prefix="/v2/models/a")}, ("a", "path")),
        ([DIRECT], {}, ("a", "path")),
        ([SERVING], {"model_a": held(3)}, ("a", "scaling")),
        ([replace(SERVING, spec={"of_old": 1})], {"model_a": held(2)}, ("a", "scaling")),
        ([SERVING], {LEFT: application()}, (LEFT, "unwanted")),
        ([], {"maas_gateway": gateway(), SHARED: application()}, (SHARED, "unwanted")),
    ],
)
def test_what_does_not_is_found(records: list[Record], running: dict[str, Any], what: tuple[str, str]) -> None:
    assert found(*records, **running) == {what}


def test_where_nothing_runs_all_is_missing() -> None:
    assert {(one.endpoint, one.what) for one in differences(PLATFORM, [SERVING], {})} == {
        ("a", "missing"),
        (GATEWAY_APP, "missing"),
    }
    assert differences(PLATFORM, [], {}) == []


def test_what_a_change_under_way_needs_is_not_unwanted() -> None:
    begun = replace(SERVING, application=LEFT, state=State.DEPLOYING)
    running = {**RUNNING, LEFT: application("DEPLOYING", ())}
    assert unwanted(PLATFORM, [begun], running) == []
    assert unwanted(PLATFORM, [replace(begun, state=State.FAILED)], running) == [LEFT]


def test_a_spec_against_what_was_asked_for_last() -> None:
    def changed(version: str, **fields: Any) -> dict[str, tuple[str, str]]:
        spec = DeploySpec.parse({"version": "a@champion", "endpoint": "a", **fields})
        return {one.what: (one.should, one.found) for one in changes(spec, version, SERVING)}

    assert changed("a/3") == {}
    assert changed("a/4") == {"version": ("a/4 (a@champion)", "a/3 (a@champion)")}
    assert changed("a/3", scaling={"max_replicas": 9}, smoke={"x": {"y": 1}}) == {
        "scaling.max_replicas": ("9", "4"),
        "smoke": ("{'x': {'y': 1}}", "None"),
    }
    assert changes(SPEC, "a/3", None)[0].what == "missing"
    # A record of before a field existed means its default.
    old = {name: value for name, value in SERVING.spec.items() if name not in ("smoke", "scaling")}
    assert changes(SPEC, "a/3", replace(SERVING, spec=old)) == []


@pytest.mark.parametrize(("name", "kind"), [("echo", "generate"), ("sums", "predict")])
def test_the_smoke_request_is_one_that_the_api_takes(name: str, kind: str) -> None:
    path, body = smoke._request(route(name, kind), None)
    app = create_app(EchoAndSums(), body_limit=10_000)
    status, text = asyncio.run(smoke._post(app, path, json.dumps(body).encode()))
    assert status == 200, text
    assert asyncio.run(smoke._post(app, path, b"{")) != (200, text)
    stream = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    path, _ = smoke._request(route("echo", "generate"), stream)
    status, text = asyncio.run(smoke._post(app, path, json.dumps(stream).encode()))
    assert (status, text[-8:]) == (200, "[DONE]\n\n")


def test_shared_replicas_are_wanted_as_long_as_an_endpoint_has_them() -> None:
    shared = ROUTE.with_target(application=SHARED, shared="{}")
    one = replace(SERVING, application=SHARED, route=shared)
    running = {SHARED: application(), GATEWAY_APP: gateway(shared)}
    assert differences(PLATFORM, [one], running) == []
    assert unwanted(PLATFORM, [], running) == [SHARED]
    assert unwanted(PLATFORM, [], {SHARED: application(source="declarative")}) == []
    (missing,) = differences(PLATFORM, [one], {GATEWAY_APP: gateway(shared)})
    assert (missing.endpoint, missing.what) == ("a", "missing")
    other = shared.with_target(shared='{"digest":"x"}')
    (difference,) = differences(PLATFORM, [one], {SHARED: application(), GATEWAY_APP: gateway(other)})
    assert difference.what == "route"


def test_shared_replicas_work_as_their_file_says() -> None:
    args = SharedArgs(max_models=3)
    deployment = {"message": "", "replicas": [{"state": "RUNNING"}], "deployment_config": {"user_config": {}}}
    deployment["deployment_config"]["user_config"] = args.document()
    route = ROUTE.with_target(application=SHARED, shared="{}")
    one = replace(SERVING, application=SHARED, route=route)
    running = {SHARED: application(deployments={SHARED_DEPLOYMENT: deployment}), GATEWAY_APP: gateway(route)}
    assert differences(PLATFORM, [one], running, args) == differences(PLATFORM, [one], running) == []
    (difference,) = differences(PLATFORM, [one], running, SharedArgs(max_models=4))
    assert difference == Difference(SHARED, "options", "{'max_models': 4}", "{'max_models': 3}")
    assert differences(PLATFORM, [], {SHARED: application("DELETING")}, args) == []
