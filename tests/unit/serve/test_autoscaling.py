"""Replicas are added before clients are refused, and rows count as requests: by Serve's own autoscaling state."""

import sys
import time
from typing import Any

import pytest
from ray import cloudpickle
from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    HandleMetricReport,
    ReplicaID,
    ReplicaMetricReport,
    TimeStampedValue,
)
from ray.serve._private.config import DeploymentConfig
from ray.serve._private.deployment_info import DeploymentInfo

from maas_ray.errors import SpecError
from maas_ray.serve import shared
from maas_ray.serve.autoscaling import ROWS
from maas_ray.serve.model_app import application
from maas_ray.serve.spec import DeploySpec, SharedArgs
from tests.support.errors import raises
from tests.support.models import route

_APP = DeploymentID("Model", "app")
_REPLICA = ReplicaID("one", _APP)
_RUNNING = "running_requests"


def _wanted(options: dict[str, Any], *, running: float, queued: float = 0, rows: float | None = None) -> int:
    """Replicas that Serve wants, if one runs and has this load."""
    spec = DeploySpec.parse({"version": "a/1"} | options)
    deployment = application(spec, "uri", route("a", "predict"), None)._bound_deployment
    # As the controller gets it.
    config = DeploymentConfig.from_proto_bytes(deployment._deployment_config.to_proto_bytes())
    config.autoscaling_config.upscale_delay_s = 0
    state = DeploymentAutoscalingState(_APP)
    state.register(DeploymentInfo(config, deployment._replica_config, 0, "job", version="1"), 1)
    state.update_running_replica_ids([_REPLICA])
    now = time.time()

    def series(value: float) -> list[TimeStampedValue]:
        return [TimeStampedValue(now - 1, value), TimeStampedValue(now, value)]

    counted = {_RUNNING: {_REPLICA.to_full_id_str(): series(running)}}
    source = DeploymentHandleSource.REPLICA
    state.record_request_metrics_for_handle(
        HandleMetricReport(_APP, "gateway", "actor", source, series(queued), counted, now)
    )
    if rows is not None:
        state.record_request_metrics_for_replica(ReplicaMetricReport(_REPLICA, {ROWS: series(rows)}, now))
    return state.get_decision_num_replicas(1)


@pytest.mark.parametrize(
    ("max_ongoing", "max_queued", "wanted"),
    # A saturated replica has `max_ongoing` requests, and as many wait; half of `max_ongoing` is the target.
    [(4, 8, 6), (4, 64, 34), (32, 64, 6), (1, 1, 4)],
)
def test_a_saturated_replica_is_not_left_alone(max_ongoing: int, max_queued: int, wanted: int) -> None:
    options = {"max_ongoing_requests": max_ongoing, "max_queued_requests": max_queued, "scaling": {"max_replicas": 99}}
    assert _wanted(options, running=max_ongoing, queued=max_queued) == wanted


def test_sequences_and_rows_count_as_requests() -> None:
    options = {"scaling": {"max_replicas": 99}}
    assert _wanted(options, running=4) == 1
    assert _wanted(options, running=4, rows=4) == 1
    assert _wanted(options, running=4, rows=4 * 32) == 8  # 128 / 16
    assert _wanted(options, running=1, queued=7, rows=41) == 3  # 48 / 16; waiting requests have not told their rows
    assert _wanted(options, running=64, rows=0) == 4  # requests that are still being read


def test_a_target_that_is_set_counts() -> None:
    assert _wanted({"scaling": {"max_replicas": 99, "target_ongoing_requests": 2}}, running=16) == 8


@pytest.mark.parametrize(("kind", "field"), [(DeploySpec, {"version": "a/1"}), (SharedArgs, {})])
def test_a_target_that_no_replica_reaches_is_refused(
    kind: type[DeploySpec | SharedArgs], field: dict[str, str]
) -> None:
    options = {"max_ongoing_requests": 4, "scaling": {"target_ongoing_requests": 4}}
    kind.parse(field | options)
    options["scaling"] = {"target_ongoing_requests": 5}
    with raises(SpecError, "target_out_of_reach", "5", "max_ongoing_requests (4)"):
        kind.parse(field | options)


def test_shared_replicas_have_a_target_of_their_own() -> None:
    config = shared.application(SharedArgs(), None)._bound_deployment._deployment_config.autoscaling_config
    assert config.target_ongoing_requests == 64


def test_the_policy_needs_no_package_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = application(DeploySpec.parse({"version": "a/1"}), "uri", route("a", "predict"), None)
    policy = deployment._bound_deployment._deployment_config.autoscaling_config.policy
    monkeypatch.setitem(sys.modules, "maas_ray.serve.autoscaling", None)
    loaded = cloudpickle.loads(policy.get_serialized_policy_def())
    assert loaded.__name__ == "replicas_for_rows"
