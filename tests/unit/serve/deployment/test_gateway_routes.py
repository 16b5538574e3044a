"""The gateway's options come from MAAS_GATEWAY; limits replace its replicas, their number does not."""

from pathlib import Path

import pytest

from maas_ray.errors import SpecError
from maas_ray.serve.deployment import gateway_routes, reconciler
from maas_ray.serve.deployment.drift import differences, http_options
from maas_ray.serve.deployment.gateway_routes import gateway_args
from maas_ray.serve.spec import GATEWAY_APP, GatewayArgs
from maas_ray.settings import Settings
from tests.support.errors import raises
from tests.unit.serve.deployment.test_drift import DIRECT, PLATFORM, ROUTE, RUNNING, SERVING, application, gateway


def test_options_are_a_file_or_a_mapping(settings: Settings, tmp_path: Path) -> None:
    assert gateway_args(settings) == GatewayArgs()
    inline = settings.model_copy(update={"gateway": "{body_limit_mb: 4, max_replicas: 8}"})
    assert gateway_args(inline) == GatewayArgs(body_limit_mb=4, max_replicas=8)
    assert GatewayArgs(body_limit_mb=200).body_limit_mb == 200  # a file of 0.2.0, which had no limit for all bodies
    (tmp_path / "gateway.yaml").write_text("body_limit_mb: 4\nmax_replicas: 8\n")
    file = settings.model_copy(update={"gateway": str(tmp_path / "gateway.yaml")})
    assert gateway_args(file) == gateway_args(inline)
    portable = reconciler._portable(file)  # the reconciler is on another machine
    (tmp_path / "gateway.yaml").unlink()
    assert gateway_args(portable) == gateway_args(inline)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ("{grpc_port: 9}", "gateway_option_elsewhere"),
        ("{models: []}", "gateway_option_elsewhere"),
        ("{body_limit_mb: 0}", "greater_than"),
        ("{min_replicas: 5}", "bounds_crossed"),
        ("{body_limit: 3}", "extra_forbidden"),
    ],
)
def test_wrong_options_are_refused(settings: Settings, options: str, code: str) -> None:
    with raises(SpecError, code, "MAAS_GATEWAY"):
        gateway_args(settings.model_copy(update={"gateway": options}))


@pytest.mark.parametrize(
    ("options", "nodes", "least"),
    [({}, 1, 1), ({}, 5, 2), ({"max_replicas": 1}, 5, 1), ({"min_replicas": 1}, 5, 1), ({"min_replicas": 3}, 1, 3)],
)
def test_two_replicas_where_one_node_may_be_lost(options: dict[str, int], nodes: int, least: int) -> None:
    assert GatewayArgs.parse(options).for_nodes(nodes).min_replicas == least


def test_other_limits_replace_the_replicas() -> None:
    version = gateway_routes._version
    assert version(GatewayArgs()) == version(GatewayArgs(min_replicas=2, max_replicas=9, grpc_port=7))
    assert version(GatewayArgs()) != version(GatewayArgs(body_limit_mb=4))


def test_options_that_differ_are_a_difference() -> None:
    running = RUNNING | {GATEWAY_APP: gateway(ROUTE)}
    config = running[GATEWAY_APP]["deployments"]["Gateway"]["deployment_config"]["user_config"]
    assert differences(PLATFORM, [SERVING], running, None, GatewayArgs(body_limit_mb=4)) == []
    config["options"] = GatewayArgs().own_options()
    assert differences(PLATFORM, [SERVING], running, None, GatewayArgs()) == []
    assert differences(PLATFORM, [SERVING], running) == []
    (difference,) = differences(PLATFORM, [SERVING], running, None, GatewayArgs(body_limit_mb=4))
    assert (difference.endpoint, difference.what) == (GATEWAY_APP, "options")


def test_a_direct_path_whose_limits_are_not_the_gateways_is_a_difference() -> None:
    name = ROUTE.target.application
    config = {"route": {}, "http": None}  # as replicas of 0.2.0, which had the defaults
    model = application(route_prefix="/v2/models/a")
    model["deployments"]["Model"]["deployment_config"] = {"user_config": config}
    running = RUNNING | {name: model, GATEWAY_APP: gateway(ROUTE)}
    limits = GatewayArgs(body_limit_mb=4, cors_origins=("https://a.example",))
    assert differences(PLATFORM, [DIRECT], running) == []
    assert differences(PLATFORM, [DIRECT], running, None, GatewayArgs()) == []
    (found,) = differences(PLATFORM, [DIRECT], running, None, limits)
    assert (found.endpoint, found.what) == ("a", "options")
    running[GATEWAY_APP]["deployments"]["Gateway"]["deployment_config"]["user_config"]["options"] = limits.own_options()
    (found,) = differences(PLATFORM, [DIRECT], running)  # the gateway has them already
    config["http"] = http_options(running)
    assert config["http"]["body_limit"] == 4_000_000
    assert differences(PLATFORM, [DIRECT], running) == []
