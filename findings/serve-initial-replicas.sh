#!/usr/bin/env bash
# Ray Serve 2.60: `initial_replicas` counts at every later deployment that changes any option, not only at the first.
# Expected: "the number of replicas started when the deployment is first deployed", as its documentation says.
# Effect: a deployment that autoscaling has grown to 3 replicas falls to 1 when only its `user_config` changes, and
#   refuses requests. `maas_ray/serve/autoscaling.py` leaves the option out once an application runs.
# Needs: ray[serve]==2.60.0
# Seen: "8 to 1 with initial_replicas, 8 to 8 without"
set -euo pipefail
source "$(dirname "$0")/environment.sh"

# The class of Serve's controller that decides on numbers of replicas; no cluster is needed.
python -W ignore - <<'PY' | tee seen
from ray import serve
from ray.serve._private.autoscaling_state import DeploymentAutoscalingState
from ray.serve._private.common import DeploymentID
from ray.serve._private.deployment_info import DeploymentInfo


def target_after_a_change(**autoscaling):
    state, target = DeploymentAutoscalingState(DeploymentID("Model", "app")), 0
    for number in range(2):
        bound = serve.deployment(
            name="Model",
            autoscaling_config={"min_replicas": 1, "max_replicas": 9, **autoscaling},
            user_config={"number": number},
        )(type("Model", (), {"reconfigure": lambda self, config: None})).bind()._bound_deployment
        info = DeploymentInfo(bound._deployment_config, bound._replica_config, 0, "job", version="1")
        target = state.register(info, target)
        if number == 0:
            target = 8  # the autoscaler's decision
    return target


with_it, without = target_after_a_change(initial_replicas=1), target_after_a_change()
print(f"8 to {with_it} with initial_replicas, 8 to {without} without")
PY
grep -qx "8 to 1 with initial_replicas, 8 to 8 without" seen
