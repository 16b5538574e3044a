"""The number of replicas: Serve's autoscaling configuration, and a policy that counts rows instead of requests.

A request may be of many sequences (`n`, several prompts) or rows (`instances`, `input`), which count as so many
requests of one row. A replica reports how many it works on.
"""

import sys
from typing import TYPE_CHECKING, Any

from maas_ray.serve.spec import Scaling

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

ROWS = "rows"
"""The name of the metric: sequences and rows that a replica works on."""


def autoscaling(scaling: Scaling, max_ongoing_requests: int, replicas: int | None) -> dict[str, Any]:
    """Serve's autoscaling configuration.

    Args:
        scaling: the bounds and the target.
        max_ongoing_requests: requests that a replica works on at once.
        replicas: replicas to begin with. Serve takes this number at every submission that changes anything. More than
            the minimum are kept until the next submission, because an application without a route looks idle.
            None: the application runs already, and keeps the number that it has.
    """
    from ray import cloudpickle

    # Serve's controller gets the policy's code. It may run in an environment without this package, or with another
    # version.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    # Gateways report waiting requests to Serve's controller every 10 s. With this field, they report requests without a
    # replica every second. Serve calls the field deprecated, but does not read the variable that it names instead.
    frequent = {"metrics_interval_s": 1} if scaling.min_replicas == 0 else {}
    return {
        **frequent,
        # A single replica may stop again if the minimum is 0.
        "min_replicas": max(scaling.min_replicas, replicas if replicas and replicas > 1 else 0),
        "initial_replicas": replicas,
        "max_replicas": scaling.max_replicas,
        "target_ongoing_requests": scaling.target(max_ongoing_requests),
        "downscale_delay_s": scaling.downscale_delay_s,
        "policy": {"policy_function": f"{__name__}:replicas_for_rows"},
    }


def first_replicas(scaling: Scaling, needed: int = 0) -> int:
    """Replicas that a new application starts with.

    Args:
        scaling: its bounds.
        needed: replicas that do its work now, in the application that it replaces.
    """
    # One starts even if the minimum is 0: a version that cannot load must not get a route.
    return min(max(1, scaling.min_replicas, needed), scaling.max_replicas)


def replicas_for_rows(context: "AutoscalingContext") -> tuple[float, dict[str, Any]]:
    """Serve's default policy, with every row in progress counted as a request. Runs in Serve's controller."""
    if context.current_num_replicas == 0:
        return context.target_num_replicas, {}
    rows = sum((context.aggregated_metrics or {}).get(ROWS, {}).values())
    total = max(context.total_num_requests, (context.total_queued_requests or 0) + rows)
    return total / context.config.get_target_ongoing_requests(), {}
